"""The documentation builds without a warning, and what it says about the code is true."""

import inspect
import re
import shutil
import subprocess
import sys
import textwrap
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import pytest

import efficient_vits
from efficient_vits import catalog, results, training
from efficient_vits.efficiency.rules import MATRIX_PRODUCTS, RULES, RULES_VERSION

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def fenced(page: str, language: str) -> dict[str, str]:
    """Code blocks of a page by caption; those without one by their number."""
    text = (DOCS / page).read_text(encoding="utf-8")
    opening = rf"^```(?:{{code-block}} )?{language}\n(?::caption: (?P<caption>[^\n]+)\n\n)?"
    blocks = re.finditer(rf"{opening}(?P<code>.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return {match["caption"] or str(i): match["code"] for i, match in enumerate(blocks)}


def run_python(code: str, folder: Path) -> str:
    """Run code in a fresh interpreter, in a working directory of its own."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built documentation."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", str(DOCS), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return out


class Page(HTMLParser):
    """Link targets and anchors of an HTML page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if given.get("id"):
            self.anchors.add(given["id"] or "")
        if tag == "a" and given.get("href"):
            self.links.append(given["href"] or "")


def broken_links(site: Path) -> list[str]:
    """Internal links of a built site that lead nowhere."""
    pages = {path: Page(path) for path in site.rglob("*.html")}
    broken = []
    for path, page in pages.items():
        for link in page.links:
            url = urlsplit(link)
            if url.scheme or url.netloc:
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            anchor = unquote(url.fragment)
            if not target.is_file() or (
                anchor and target in pages and anchor not in pages[target].anchors
            ):
                broken.append(f"{path.relative_to(site)}: {link}")
    return broken


def test_internal_links_lead_somewhere(site: Path) -> None:
    assert len(list(site.glob("*.html"))) >= 7
    assert broken_links(site) == []


def test_broken_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<a href="b.html#there">b</a><a href="#gone">c</a>')
    (tmp_path / "b.html").write_text('<p id="there"><a href="c.html">c</a></p>')
    assert sorted(broken_links(tmp_path)) == ["a.html: #gone", "b.html: c.html"]


def test_public_names_are_documented(site: Path) -> None:
    anchors = Page(site / "api.html").anchors
    modules = [
        efficient_vits,
        efficient_vits.attention,
        efficient_vits.reduction,
        efficient_vits.mlp,
        efficient_vits.models,
        efficient_vits.weights,
        efficient_vits.efficiency,
        results,
        training,
    ]
    # One object that is public in two places is documented in one.
    names: dict[int, list[str]] = {}
    for module in modules:
        for name in module.__all__:
            public = getattr(module, name)
            if not inspect.ismodule(public):
                names.setdefault(id(public), []).append(f"{module.__name__}.{name}")
    assert len(names) > 30
    assert [same for same in names.values() if not anchors.intersection(same)] == []


def test_models_page_names_every_card(site: Path) -> None:
    html = (site / "models.html").read_text(encoding="utf-8")
    for name, card in catalog.cards().items():
        assert catalog.is_available(name), "the page says that all of them can be built"
        assert f">{name}<" in html, name
        assert card.paper is None or f"https://arxiv.org/abs/{card.paper.arxiv}" in html


def test_models_page_has_the_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DOCS))
    import generated

    cards = {card.name: card for card in generated.available_models()}
    assert sorted(cards) == sorted(efficient_vits.list_models())
    rows = {
        line.split("`")[1]: line
        for line in generated.table(list(cards.values())).splitlines()
        if line.startswith("| `")
    }
    assert "| 22,059,496 |" in rows["hydra_s16"]
    assert f"| {catalog.count_parameters_of('hydra_ti16'):,}\\* |" in rows["hydra_ti16"]
    flops = cards["tome_s16_r8"].flops
    assert flops is not None
    assert f"| {flops / 1e9:.2f} |" in rows["tome_s16_r8"]
    assert "no licence" not in rows["vit_s16"]
    assert "Apache-2.0" in rows["vit_s16"]


def test_snippets_run(tmp_path: Path) -> None:
    # A page is one session: later snippets use the names of earlier ones. The pages share a process
    # because its start takes longer than most snippets.
    pages = (
        *("index.md", "architecture.md", "efficiency.md", "hub.md", "results.md", "pictures.md"),
        *("sweeps.md", "training.md"),
    )
    for page in pages:
        snippets = fenced(page, "python")
        assert snippets, page
        (tmp_path / f"{page}.py").write_text("\n".join(snippets.values()), encoding="utf-8")
    run_python(
        "import pathlib, runpy\n"
        "for page in sorted(pathlib.Path().glob('*.py')): runpy.run_path(str(page))",
        tmp_path,
    )


def test_examples_of_mechanisms_are_one_file_each(tmp_path: Path) -> None:
    """In a copy of the package, each file of the page is all that a mechanism takes."""
    blocks = fenced("add_mechanism.md", "python")
    files = {caption: code for caption, code in blocks.items() if caption.endswith(".py")}
    assert len(files) == 3
    package = Path(efficient_vits.__file__).parent
    shutil.copytree(package, tmp_path / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    for path, code in files.items():
        assert not (tmp_path / path).exists()
        (tmp_path / path).write_text(code, encoding="utf-8")
    uses = [code for caption, code in blocks.items() if caption.startswith("use of")]
    assert len(uses) == 3
    calls = """
        check("aft_simple_ti16")
        check("keep_unusual_ti16")
        check("geglu_ti16")
        check("vit_ti16", attention="hydra", mlp="geglu", reduction="tome", r=4)
        known = efficient_vits.list_models()
        assert {"aft_simple_l16", "keep_unusual_b16", "geglu_s16"} <= set(known)
        print(efficient_vits.__file__)
    """
    script = "\n".join([*uses, blocks["checks"], textwrap.dedent(calls)])
    assert str(tmp_path) in run_python(script, tmp_path)


def rules_table() -> dict[str, str]:
    """Operator -> cost, as the efficiency page has it."""
    table: dict[str, str] = {}
    for line in (DOCS / "efficiency.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `") and len(cells) == 2:
            for operator in re.findall(r"`(\w+)`", cells[0]):
                assert operator not in table, f"{operator} twice"
                table[operator] = cells[1]
    return table


def test_rules_table_has_every_operator() -> None:
    assert rules_table().keys() == RULES.keys()
    assert RULES_VERSION in (DOCS / "efficiency.md").read_text(encoding="utf-8")
    products = {name for name, cost in rules_table().items() if cost.startswith("multiply-adds")}
    assert products == MATRIX_PRODUCTS & RULES.keys()


def test_rules_table_has_the_costs() -> None:
    """Costs per element, asked of the rules with a call of 24 elements in and 12 out."""
    call = SimpleNamespace(
        numel=lambda argument: 24, output_numel=12, is_given=lambda argument: True
    )
    checked = 0
    for operator, cost in rules_table().items():
        simple = re.fullmatch(r"(\d+) per (result|input)", cost)
        if simple:
            elements = 12 if simple[2] == "result" else 24
            assert RULES[operator](call) == int(simple[1]) * elements, operator  # type: ignore[arg-type]
            checked += 1
    assert checked > 60


def test_pages_speak_of_the_project_alone() -> None:
    for path in [*DOCS.glob("*.md"), *DOCS.glob("*.py"), *ROOT.glob("examples/*.ipynb")]:
        text = path.read_text(encoding="utf-8")
        found = re.findall(r"/(?:work|tmp|home|root|Users)/\S*", text)
        assert not found, f"{path.name}: {found}"
