"""`efficient-vits list`: the models of this version, by what they are and cost."""

import re
import sys
from typing import Annotated, Any

import typer

from efficient_vits.catalog import ModelCard, count_parameters_of, list_models, model_card
from efficient_vits.cli._app import app
from efficient_vits.cli._console import (
    ABSENT,
    AsJson,
    giga,
    millions,
    print_json,
    print_text,
    table,
)
from efficient_vits.cli._errors import UserError, mistakes

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9}


@app.command(
    "list", epilog="Example: efficient-vits list '*_s16' --year 2021-2022 --max-params 25M"
)
def list_command(
    pattern: Annotated[
        str, typer.Argument(metavar="PATTERN", help="Shell pattern of the name.")
    ] = "*",
    axis: Annotated[
        str | None,
        typer.Option(help="'token mixing', 'token sequence', 'MLP block' or 'baseline'."),
    ] = None,
    taxonomy: Annotated[
        str | None, typer.Option(help="Part of the taxonomy class, such as 'kernel'.")
    ] = None,
    year: Annotated[
        str | None, typer.Option(metavar="YEAR", help="Year of the paper, 2021 or 2020-2022.")
    ] = None,
    max_params: Annotated[
        str | None,
        typer.Option(metavar="NUMBER", help="Most parameters: 25M, 25e6 or 25000000."),
    ] = None,
    built_on: Annotated[
        str | None, typer.Option(help="Whose implementation: 'efficient_vits' or 'timm'.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the models that this version can create."""
    years = None if year is None else parse_years(year)
    most = None if max_params is None else parse_count(max_params)
    with mistakes(ValueError):
        names = list_models(
            pattern, axis=axis, taxonomy=taxonomy, year=years, max_params=most, built_on=built_on
        )
    cards = [model_card(name) for name in names]
    if as_json:
        print_json([_to_dict(card) for card in cards])
    elif cards:
        _print_table(cards)
    else:
        print("no model matches; a pattern is a shell pattern such as 'hydra_*'", file=sys.stderr)


def parse_years(text: str) -> tuple[int, int]:
    """First and last year."""
    match = re.fullmatch(r"(\d{4})(?:-(\d{4}))?", text)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if first > last:
        raise UserError(f"--year {text!r} is no year; accepted are 2021 and 2020-2022")
    return first, last


def parse_count(text: str) -> int:
    """A number of parameters."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?(?:e\d{1,2})?)([KMB]?)", text, re.IGNORECASE)
    count = int(float(match[1]) * _UNITS[match[2].upper()]) if match else 0
    if not count:
        raise UserError(
            f"--max-params {text!r} is no number of parameters; accepted are positive numbers such "
            f"as 25M, 25e6 or 25000000 (K, M and B are thousands, millions and billions)"
        )
    return count


def _to_dict(card: ModelCard) -> dict[str, Any]:
    return {
        "name": card.name,
        "axis": card.axis,
        "taxonomy_class": card.taxonomy_class,
        "year": card.year,
        "built_on": card.built_on,
        "parameters": count_parameters_of(card.name),
        "params": card.params,
        "flops": card.flops,
        "reference_args": dict(card.reference_args),
    }


def _print_table(cards: list[ModelCard]) -> None:
    rows = [
        (
            card.name,
            card.taxonomy_class or ABSENT,
            str(card.year or ABSENT),
            millions(count_parameters_of(card.name)),
            giga(card.flops) + ("*" if card.flops and card.reference_args else ""),
        )
        for card in cards
    ]
    headers = ("name", "class", "year", "parameters", "GFLOPs published")
    print_text(table(headers, rows, left=("name", "class")))
    if any(card.flops and card.reference_args for card in cards):
        print_text("* with the arguments that 'efficient-vits info NAME' shows")
