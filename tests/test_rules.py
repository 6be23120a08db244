"""Rules of the architecture, read off the sources; each with sources that break it."""

import ast
from pathlib import Path

import pytest

import efficient_vits

ROOT = Path(efficient_vits.__file__).parent
SOURCES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in sorted(ROOT.rglob("*.py"))
}

# Who may import whom: from left to right, and within a group as long as there is no circle.
LAYERS = [
    {"cli"},
    {"training", "plots", "results", "weights"},
    {"models"},
    {"attention", "reduction", "mlp", "catalog"},
]
LAYER = {room: depth for depth, group in enumerate(LAYERS) for room in group}
MECHANISMS = {"attention", "reduction", "mlp"}
PLOTTING = {"matplotlib", "pandas", "plotly"}
MOST_LINES = 400


def module_name(path):
    parts = ["efficient_vits", *path.removesuffix(".py").split("/")]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_typing_only(node):
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def nodes(tree, *, at_import=False):
    """All nodes but those that only type checkers see; `at_import`: nor the bodies of functions."""
    pending = [tree]
    while pending:
        node = pending.pop()
        yield node
        if is_typing_only(node):
            pending.extend(node.orelse)
        elif not (at_import and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            pending.extend(ast.iter_child_nodes(node))


def imports(path, source, **how):
    """Absolute dotted names that a file imports; ``from a import b`` is ``a.b``."""
    package = module_name(path).split(".")
    if not path.endswith("__init__.py"):
        package = package[:-1]
    for node in nodes(ast.parse(source), **how):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{start}.{alias.name}" for alias in node.names)


def room(name):
    """The part of the package that a dotted name lies in; "" for the package itself."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else ""


def inner_imports(sources):
    """(path, room it lies in, room it imports) for imports of the package by itself."""
    rooms = {room(module_name(path)) for path in sources} - {""}
    for path, source in sources.items():
        for name in imports(path, source):
            if name.split(".")[0] == "efficient_vits":
                target = room(name)
                yield path, room(module_name(path)), target if target in rooms else ""


def direction_faults(sources):
    """Imports against the direction, and rooms that have no place in it."""
    faults, edges = [], {}
    for path, here, there in inner_imports(sources):
        if here in {"", there}:
            continue  # the package's own __init__ gathers; a room knows itself
        edges.setdefault(here, set()).add(there)
        if here == "cli":
            right = there in LAYER or there in {"", "efficiency"} or there.startswith("_")
        elif here == "efficiency":
            right = False
        elif here.startswith("_"):
            right = there.startswith("_")
        elif there.startswith("_") or there == "efficiency":
            right = True
        else:
            right = here in LAYER and there in LAYER and LAYER[here] <= LAYER[there]
        if not right:
            faults.append(f"{path} imports {there or 'the package itself'}")
    for here, there in circles(edges):
        faults.append(f"{here} and {there} import each other")
    return faults


def circles(edges):
    """Pairs of rooms that reach each other."""
    reach = {}
    for start in edges:
        seen, pending = set(), [start]
        while pending:
            fresh = edges.get(pending.pop(), set()) - seen
            seen |= fresh
            pending.extend(fresh)
        reach[start] = seen
    return sorted((a, b) for a in reach for b in reach[a] if a < b and a in reach.get(b, set()))


def homeless(sources):
    """Folders and public modules whose layer nobody has said."""
    known = LAYER.keys() | {"", "efficiency"}
    return sorted(
        r for r in {room(module_name(path)) for path in sources} - known if not r.startswith("_")
    )


def private_names_of_timm(sources):
    faults = []
    for path, source in sources.items():
        used = [*imports(path, source), *map(dotted, nodes(ast.parse(source)))]
        for name in used:
            first, *rest = name.split(".")
            if first == "timm" and any(part.startswith("_") for part in rest):
                faults.append(f"{path} uses {name}")
    return faults


def dotted(node):
    """``timm.models._x`` of a name or an attribute access; empty for anything else."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def long_files(sources):
    return [path for path, text in sources.items() if len(text.splitlines()) > MOST_LINES]


def plotting_at_import(sources):
    return [
        f"{path} imports {name}"
        for path, source in sources.items()
        for name in imports(path, source, at_import=True)
        if name.split(".")[0] in PLOTTING and room(module_name(path)) not in {"plots", "results"}
    ]


def einops_in_hot_code(sources):
    """Files that import einops anywhere but in a naive twin."""
    faults = []
    for path, source in sources.items():
        pending = [ast.parse(source)]
        while pending:
            node = pending.pop()
            if isinstance(node, ast.FunctionDef) and "naive" in node.name:
                continue
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == "einops" for name in names):
                faults.append(path)
            pending.extend(ast.iter_child_nodes(node))
    return faults


def printing(sources):
    return [
        f"{path}:{node.lineno}"
        for path, source in sources.items()
        if room(module_name(path)) != "cli"
        for node in nodes(ast.parse(source))
        if isinstance(node, ast.Call) and dotted(node.func) in {"print", "sys.stdout.write"}
    ]


RULES = [
    direction_faults,
    homeless,
    private_names_of_timm,
    long_files,
    plotting_at_import,
    einops_in_hot_code,
    printing,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_package_keeps_the_rule(rule):
    assert rule(SOURCES) == []


def test_all_of_the_package_is_read():
    assert {"__init__.py", "_registry.py", "attention/hydra.py", "models/vit.py"} <= SOURCES.keys()
    seen = {(here, there) for _, here, there in inner_imports(SOURCES)}
    assert {("models", "attention"), ("attention", "_registry"), ("", "weights")} <= seen


def test_mechanisms_import_no_models_and_nobody_imports_the_command_line():
    seen = {(here, there) for _, here, there in inner_imports(SOURCES) if here != there}
    assert not {(here, there) for here, there in seen if here in MECHANISMS and there == "models"}
    assert not {here for here, there in seen if there == "cli"}


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("attention/hydra.py", "from efficient_vits.models import create_vit"),
        ("attention/hydra.py", "import efficient_vits.models.vit"),
        ("attention/hydra.py", "from efficient_vits import models"),
        ("attention/hydra.py", "from ..models import vit"),
        ("attention/hydra.py", "from .. import models"),
        ("attention/__init__.py", "from ..models import vit"),
        ("attention/hydra.py", "def f():\n    from efficient_vits.models import vit"),
        ("attention/hydra.py", "from efficient_vits import load_weights"),
        ("catalog/__init__.py", "from efficient_vits import weights"),
        ("models/vit.py", "from efficient_vits.weights import load_weights"),
        ("models/vit.py", "from efficient_vits.training import fit"),
        ("weights/_load.py", "from efficient_vits.cli import main"),
        ("efficiency/flops.py", "from efficient_vits.catalog import cards"),
        ("efficiency/flops.py", "from efficient_vits._registry import Registry"),
        ("_registry.py", "from efficient_vits.attention import create_attention"),
    ],
)
def test_an_import_against_the_direction_is_found(path, source):
    rooms = {f"{name}/__init__.py": "" for name in [*LAYER, "efficiency"]}
    faults = direction_faults({**rooms, "_registry.py": "", path: source})
    assert any(fault.startswith(path) for fault in faults)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("cli/list.py", "from efficient_vits import __version__, catalog, efficiency, training"),
        ("plots/__init__.py", "from efficient_vits.results import runs"),
        ("weights/_load.py", "from efficient_vits.models import vit\nimport efficient_vits._state"),
        ("models/vit.py", "from efficient_vits.attention import _interface"),
        ("attention/hydra.py", "from . import _interface"),
        ("attention/hydra.py", "from ._interface import x\nfrom .._registry import Registry"),
        ("efficiency/flops.py", "from efficient_vits.efficiency.rules import RULES"),
        (
            "_registry.py",
            "if TYPE_CHECKING:\n    from efficient_vits.catalog import Paper",
        ),
    ],
)
def test_an_import_along_the_direction_is_not(path, source):
    rooms = {f"{name}/__init__.py": "" for name in [*LAYER, "efficiency"]}
    assert direction_faults({**rooms, "_registry.py": "", "_state.py": "", path: source}) == []


def test_a_circle_within_a_layer_is_found():
    sources = {
        "plots/__init__.py": "from efficient_vits import results",
        "results/__init__.py": "from efficient_vits import weights",
        "weights/__init__.py": "",
    }
    assert direction_faults(sources) == []
    sources["weights/__init__.py"] = "def late():\n    import efficient_vits.plots"
    assert direction_faults(sources) == [
        "plots and results import each other",
        "plots and weights import each other",
        "results and weights import each other",
    ]


@pytest.mark.parametrize(
    ("rule", "path", "source"),
    [
        (homeless, "extras/__init__.py", ""),
        (homeless, "fusing.py", ""),
        (private_names_of_timm, "models/vit.py", "from timm.models._manipulate import named_apply"),
        (private_names_of_timm, "models/vit.py", "from timm.layers import _assert"),
        (private_names_of_timm, "models/vit.py", "import timm.models._registry"),
        (private_names_of_timm, "models/vit.py", "import timm\ntimm.models._registry.clear()"),
        (long_files, "models/vit.py", "x = 1\n" * (MOST_LINES + 1)),
        (plotting_at_import, "efficiency/measure.py", "import pandas as pd"),
        (plotting_at_import, "cli/plot.py", "from matplotlib import pyplot"),
        (plotting_at_import, "cli/plot.py", "try:\n    import plotly.io\nexcept ImportError: pass"),
        (plotting_at_import, "cli/plot.py", "class A:\n    import pandas"),
        (einops_in_hot_code, "attention/hydra.py", "import einops"),
        (einops_in_hot_code, "attention/hydra.py", "from einops.layers.torch import Rearrange"),
        (einops_in_hot_code, "attention/hydra.py", "def f():\n    from einops import rearrange"),
        (printing, "catalog/__init__.py", "print('hello')"),
        (printing, "catalog/__init__.py", "def f():\n    g(print(1))"),
    ],
)
def test_a_breach_is_found(rule, path, source):
    assert rule({path: source}) != []


@pytest.mark.parametrize(
    ("rule", "path", "source"),
    [
        (homeless, "_numerics.py", ""),
        (private_names_of_timm, "models/vit.py", "from timm.layers import LayerNorm"),
        (private_names_of_timm, "models/vit.py", "self._init(timm)"),
        (long_files, "models/vit.py", "x = 1\n" * MOST_LINES),
        (plotting_at_import, "plots/pareto.py", "import matplotlib"),
        (plotting_at_import, "cli/plot.py", "def f():\n    import matplotlib"),
        (einops_in_hot_code, "attention/hydra.py", "def naive():\n    from einops import einsum"),
        (printing, "cli/list.py", "print('hello')"),
        (printing, "catalog/__init__.py", "'''print() this'''\nself.print()"),
    ],
)
def test_what_the_rule_allows_is_not(rule, path, source):
    assert rule({path: source}) == []
