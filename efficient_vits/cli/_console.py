"""How results are printed: tables for people, JSON for programs, both on stdout."""

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

ABSENT = "-"
_WIDTH_WITHOUT_TERMINAL = 200  # a pipe or a file gets whole lines, not those of an 80-column screen

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout and nothing else.")]


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


def print_text(*lines: object) -> None:
    """Print strings and rich's renderables."""
    console = Console(
        width=None if sys.stdout.isatty() else _WIDTH_WITHOUT_TERMINAL,
        markup=False,
        highlight=False,
        emoji=False,
    )
    for line in lines:
        console.print(line)


def table(headers: Sequence[str], rows: Iterable[Sequence[str]], *, left: Sequence[str]) -> Table:
    """A table whose columns are figures, on the right, but for those named in `left`."""
    out = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for header in headers:
        # Names are copied from the first column, so it is never cut.
        out.add_column(
            header,
            justify="left" if header in left else "right",
            no_wrap=header == headers[0],
            overflow="fold",
        )
    for row in rows:
        out.add_row(*row)
    return out


def millions(count: int) -> str:
    return f"{count / 1e6:.2f} M"


def giga(count: int | None) -> str:
    return ABSENT if count is None else f"{count / 1e9:.3f}"
