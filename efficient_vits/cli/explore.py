"""`efficient-vits explore`: all runs on one interactive page."""

from pathlib import Path
from typing import Annotated

import typer

from efficient_vits.cli._app import app
from efficient_vits.cli._console import print_text
from efficient_vits.cli._errors import UserError, mistakes
from efficient_vits.cli._own import read_own
from efficient_vits.results import load_rows

FORMATS = (".html", ".htm")


@app.command("explore", epilog="Example: efficient-vits explore own.json -o runs.html")
def explore_command(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="HTML file to write.")
    ],
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FILE",
            help="Own measurements, of 'measure --json', to show with the benchmark's runs; where "
            "they have no accuracy, it is the benchmark's.",
        ),
    ] = None,
) -> None:
    """Write a page with axes to choose, filters, the front, and model cards; it works offline."""
    if output.suffix.lower() not in FORMATS:
        raise UserError(f"--output {output} is none of {', '.join(FORMATS)}")
    if not output.parent.is_dir():
        raise UserError(f"--output {output}: there is no folder {output.parent}")
    own = read_own(files or [])

    from efficient_vits.plots import explore

    with mistakes(ImportError, ValueError, OSError):
        path = explore(output, [*load_rows(), *own])
    size = path.stat().st_size / 1e6
    mine = f", {len(own)} own" if own else ""
    print_text(f"{path}: {len(load_rows())} runs of the benchmark{mine}, {size:.1f} MB")
