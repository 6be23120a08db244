"""What the pages take from elsewhere: the catalog's tables, docstrings, the examples' notebooks.

The directive ``catalog-table`` stands for one of the tables in `TABLES`, ``mechanisms`` for the
modules of an axis. Notebooks are copied from
``examples/`` to ``docs/_generated/``, which git ignores.
"""

import importlib
import pkgutil
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from torch import nn as torch_nn

from efficient_vits import ModelCard, catalog

GENERATED = Path(__file__).parent / "_generated"
EXAMPLES = Path(__file__).parents[1] / "examples"

HEADER = (
    "| model | class | year | parameters | GFLOPs | paper | authors' code | notes |\n"
    "|---|---|---:|---:|---:|---|---|---|\n"
)


def available_models() -> list[ModelCard]:
    """Cards of the models that this version creates, by class and name."""
    return _ordered(card for card in catalog.cards().values() if catalog.is_available(card.name))


def table(cards: list[ModelCard]) -> str:
    """A Markdown table with one row per card."""
    return HEADER + "\n".join(_row(card) for card in cards)


def _ordered(cards: Any) -> list[ModelCard]:
    axes = ["baseline", *catalog.AXES.values()]
    return sorted(cards, key=lambda card: (axes.index(card.axis), card.taxonomy_class, card.name))


def _row(card: ModelCard) -> str:
    paper = code = year = ""
    if card.paper is not None:
        year = str(card.paper.year)
        source = f"{card.paper.first_author}, {card.paper.venue}"
        paper = f"[{source}](https://arxiv.org/abs/{card.paper.arxiv})"
        if not card.paper.arxiv:
            paper = source
    if card.authors_code:
        code = f"[{card.authors_code}](https://github.com/{card.authors_code})"
        code += f", {_licence(card.licence)}"
    flops = "" if card.flops is None else f"{card.flops / 1e9:.2f}"
    cells = [
        f"`{card.name}`",
        card.taxonomy_class or card.axis,
        year,
        _parameters(card),
        flops,
        paper,
        code,
        "; ".join(_notes(card)),
    ]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _licence(licence: str) -> str:
    return {"none": "no licence", "": "licence unknown"}.get(licence, licence)


def _parameters(card: ModelCard) -> str:
    """The published number; for models of this version that have none, counted, with a star."""
    if card.params is not None:
        return f"{card.params:,}"
    if catalog.is_available(card.name):
        return f"{catalog.count_parameters_of(card.name):,}\\*"
    return ""


def _notes(card: ModelCard) -> list[str]:
    notes = [card.note] if card.note else []
    if card.reference_args:
        arguments = ", ".join(f"{name}={value!r}" for name, value in card.reference_args.items())
        notes.append(f"figures hold with `{arguments}`")
    if card.img_size != 224:
        notes.append(f"figures hold at {card.img_size} px")
    if card.built_on == "timm" and catalog.is_available(card.name) and "timm" not in card.note:
        notes.append("timm's implementation")
    return notes


TABLES = {"available": available_models}


class CatalogTable(SphinxDirective):
    """``catalog-table``: the table of TABLES that its argument names."""

    required_arguments = 1
    has_content: ClassVar[bool] = False

    def run(self) -> list[nodes.Node]:
        choice = self.arguments[0]
        if choice not in TABLES:
            raise self.error(f"no table {choice!r}; there are {', '.join(TABLES)}")
        return self.parse_text_to_nodes(table(TABLES[choice]()))


class Mechanisms(SphinxDirective):
    """``mechanisms``: the documentation of every file of an axis that defines a class."""

    required_arguments = 1
    has_content: ClassVar[bool] = False

    def run(self) -> list[nodes.Node]:
        package = importlib.import_module(f"efficient_vits.{self.arguments[0]}")
        lines = []
        for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            if found.name.rpartition(".")[2].startswith("_"):
                continue
            module = importlib.import_module(found.name)
            classes = [
                name
                for name, cls in vars(module).items()
                if isinstance(cls, type)
                and issubclass(cls, torch_nn.Module)
                and cls.__module__ == found.name
            ]
            if classes:
                lines += [f".. automodule:: {found.name}", f"   :members: {', '.join(classes)}", ""]
        return self.parse_text_to_nodes("```{eval-rst}\n" + "\n".join(lines) + "```\n")


def copy_notebooks(app: Sphinx) -> None:
    """Bring the examples into the source directory; what is up to date is left alone."""
    GENERATED.mkdir(exist_ok=True)
    notebooks = {path.name: path.read_bytes() for path in sorted(EXAMPLES.glob("*.ipynb"))}
    for old in GENERATED.glob("*.ipynb"):
        if old.name not in notebooks:
            old.unlink()
    for name, content in notebooks.items():
        target = GENERATED / name
        if not target.exists() or target.read_bytes() != content:
            target.write_bytes(content)


def formulas_as_written(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Make the formulas of a module's docstring, which are indented, literal blocks."""
    if what != "module":
        return
    source, lines[:] = list(lines), []
    for i, line in enumerate(source):
        starts = line.startswith("    ") and (i == 0 or not source[i - 1].strip())
        if starts and not (len(lines) > 1 and lines[-2].rstrip().endswith("::")):
            lines += ["::", ""]
        lines.append(line)


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("catalog-table", CatalogTable)
    app.add_directive("mechanisms", Mechanisms)
    app.connect("autodoc-process-docstring", formulas_as_written)
    app.connect("builder-inited", copy_notebooks, priority=100)
    return {"parallel_read_safe": True}
