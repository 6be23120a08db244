"""`efficient-vits figures`: the figures of the benchmark, and the user's own runs in them."""

from pathlib import Path
from typing import Annotated, Any

import typer

from efficient_vits.cli._app import app
from efficient_vits.cli._console import AsJson, print_json, print_text
from efficient_vits.cli._errors import UserError, mistakes
from efficient_vits.cli._own import read_own
from efficient_vits.cli._values import parse_choices
from efficient_vits.results import load_rows

THEMES = ("light", "dark")
FORMATS = ("svg", "pdf", "png")


@app.command(
    epilog="Example: efficient-vits figures -o figures --format svg,pdf --theme light,dark"
)
def figures(
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="DIR", help="Folder to write to; made if missing."),
    ],
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FILE",
            help="Own measurements, of 'measure --json', drawn with the benchmark's runs; "
            "accuracies are the benchmark's.",
        ),
    ] = None,
    formats: Annotated[
        str, typer.Option("--format", metavar="LIST", help=f"Out of {', '.join(FORMATS)}.")
    ] = "svg",
    theme: Annotated[
        str, typer.Option(metavar="LIST", help=f"Out of {', '.join(THEMES)}.")
    ] = "light",
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="One figure instead of all; again for another one."),
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Write every figure of the benchmark's supplement, and those of the fronts."""
    endings = parse_choices(formats, FORMATS, option="--format")
    themes = parse_choices(theme, THEMES, option="--theme")
    own = read_own(files or [])

    from efficient_vits.plots import FIGURES, draw, write_figure

    names = list(dict.fromkeys(only)) if only else list(FIGURES)
    unknown = [name for name in names if name not in FIGURES]
    if unknown:
        raise UserError(f"--only {unknown[0]!r} is no figure; accepted are {', '.join(FIGURES)}")
    runs = load_rows(own) if own else None
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {output} is a file; accepted is a folder")
    written: list[dict[str, Any]] = []
    for name in names:
        for look in themes:
            with mistakes(ValueError, ImportError, prefix=f"{name}: "):
                figure = draw(name, runs, theme=look)
            for ending in endings:
                path = output / f"{name}{'' if look == 'light' else '-dark'}.{ending}"
                with mistakes(OSError):
                    output.mkdir(parents=True, exist_ok=True)
                    write_figure(figure, path)
                picture = FIGURES[name]
                written.append(
                    {
                        "file": str(path),
                        "name": name,
                        "figure": picture.number,
                        "shows": picture.shows,
                        "theme": look,
                    }
                )
                if not as_json:
                    print_text(f"{path}: {picture.title}")
    if as_json:
        print_json(written)
    return 0
