"""`efficient-vits info`: the card of one model."""

import dataclasses
from typing import Annotated

import timm
import typer
from rich.table import Table

from efficient_vits.catalog import (
    ModelCard,
    PublishedWeights,
    count_parameters_of,
    is_available,
    model_card,
)
from efficient_vits.cli._app import app
from efficient_vits.cli._console import ABSENT, AsJson, giga, millions, print_json, print_text
from efficient_vits.cli._errors import mistakes


@app.command(epilog="Example: efficient-vits info hydra_s16")
def info(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of a model in the catalog.")],
    as_json: AsJson = False,
) -> None:
    """Show what is known about a model: paper, class, figures, licence, weights."""
    with mistakes(ValueError):
        card = model_card(name)
    tags: list[str] = timm.list_pretrained(name)
    parameters = count_parameters_of(name) if is_available(name) else None
    if as_json:
        more = {"registered": is_available(name), "parameters": parameters, "pretrained": tags}
        print_json({**dataclasses.asdict(card), "arxiv_url": _arxiv(card), **more})
        return
    grid = Table.grid(padding=(0, 2))
    for label, text in _rows(card, parameters, tags):
        grid.add_row(label, text)
    print_text(card.name, grid)


def _arxiv(card: ModelCard) -> str | None:
    return f"https://arxiv.org/abs/{card.paper.arxiv}" if card.paper and card.paper.arxiv else None


def _rows(card: ModelCard, parameters: int | None, tags: list[str]) -> list[tuple[str, str]]:
    paper = card.paper
    rows = [
        ("paper", paper.title if paper else ABSENT),
        ("first author", paper.first_author if paper else ABSENT),
        ("venue", paper.venue if paper else ABSENT),
        ("year", str(paper.year) if paper else ABSENT),
        ("arXiv", _arxiv(card) or ABSENT),
        ("axis", card.axis),
        ("class", card.taxonomy_class or ABSENT),
        ("parameters", _parameters(card, parameters)),
        ("FLOPs", _flops(card)),
        ("authors' code", card.authors_code and f"https://github.com/{card.authors_code}"),
        ("its licence", card.licence),
        ("built on", card.built_on),
        ("registered here", "yes" if parameters is not None else "not in this version"),
        ("as benchmarked", _call(card)),
        ("pretrained", ", ".join(tags) or "none"),
        *(("weights", _weights(card, entry)) for entry in card.weights),
        *([("weights", f"none: {card.no_weights}")] if card.no_weights else []),
        *([("warm start", card.warm_start)] if card.no_weights and card.warm_start else []),
        ("note", card.note),
    ]
    return [(label, text or ABSENT) for label, text in rows]


def _weights(card: ModelCard, entry: PublishedWeights) -> str:
    """Where some weights are, in one line; those without a tag are fetched by hand."""
    facts = [
        entry.address,
        f"licence {entry.licence}",
        "" if entry.top1 is None else f"{entry.top1:g} % top-1",
        f"layout {entry.layout}",
        "" if entry.tag else "by hand",
        entry.arguments and f"with {entry.arguments}",
        entry.note,
    ]
    tag = f"{card.name}.{entry.tag}: " if entry.tag else ""
    return tag + "; ".join(fact for fact in facts if fact)


def _parameters(card: ModelCard, counted: int | None) -> str:
    figures = []
    if card.params is not None:
        figures.append(f"{millions(card.params)} (published)")
    if counted is not None and counted != card.params:
        figures.append(f"{millions(counted)} (counted, without arguments)")
    return ", ".join(figures)


def _flops(card: ModelCard) -> str:
    if card.flops is None:
        return ABSENT
    size = f"{card.img_size}x{card.img_size}"
    return f"{giga(card.flops)} G at {size} (published; a multiply-add is one)"


def _call(card: ModelCard) -> str:
    """The call that makes the model the benchmark ran, or nothing where it ran none."""
    if not card.paper_model:
        return ""
    arguments = "".join(f", {key}={value!r}" for key, value in card.reference_args.items())
    return f'{card.paper_model}: timm.create_model("{card.name}"{arguments})'
