"""`efficient-vits compare`: a table of a sweep's rows, relative to a baseline."""

import dataclasses
from typing import Annotated

import typer

from efficient_vits.cli._app import app
from efficient_vits.cli._console import AsJson, print_json, print_text, table
from efficient_vits.cli._errors import UserError, mistakes
from efficient_vits.efficiency import Comparison, compare

_FORMATS = ("table", "markdown", "latex", "csv")


@app.command(
    "compare",
    epilog="Example: efficient-vits compare results.jsonl --baseline vit_s16 --format markdown",
)
def compare_command(
    files: Annotated[list[str], typer.Argument(metavar="FILE", help="Files of 'sweep'.")],
    baseline: Annotated[
        str | None, typer.Option(metavar="NAME", help="Model that ratios are relative to.")
    ] = None,
    layout: Annotated[str, typer.Option("--format", help=f"One of {', '.join(_FORMATS)}.")] = (
        "table"
    ),
    columns: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="Of parameters, flops, macs, memory, throughput, and paths in a row such as "
            "memory.activation_bytes.",
        ),
    ] = "parameters,flops,memory,throughput",
    interval: Annotated[
        str, typer.Option(help="confidence, or prediction: where a repeat would lie.")
    ] = "confidence",
    across: Annotated[
        list[str] | None,
        typer.Option(help="machines or protocols that may differ; again for both."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare the rows of sweeps: figures, their intervals, and ratios to a baseline."""
    if layout not in _FORMATS:
        raise UserError(f"--format {layout!r} is none; accepted are {', '.join(_FORMATS)}")
    with mistakes(ValueError, OSError):
        comparison = compare(
            files, baseline, columns=columns.split(","), interval=interval, across=across or []
        )
    if as_json:
        print_json(dataclasses.asdict(comparison))
    elif layout == "table":
        headers, rows, left = comparison.cells()
        print_text(table(headers, rows, left=headers[:left]), *comparison.notes())
    else:
        print(_text(comparison, layout))


def _text(comparison: Comparison, layout: str) -> str:
    if layout == "markdown":
        return comparison.to_markdown()
    return comparison.to_latex() if layout == "latex" else comparison.to_csv()
