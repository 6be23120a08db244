"""The application that subcommands register with, and the function that runs it."""

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

import efficient_vits
from efficient_vits.cli._errors import USAGE_ERROR, UserError, describe, one_line

PROGRAM = "efficient-vits"

app = typer.Typer(
    pretty_exceptions_enable=False,
    epilog=f"Example: {PROGRAM} list 'hydra_*'",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Args:
        argv: Arguments without the program's name; by default those of the process.

    Returns:
        0; 1 where a model failed or nobody reads the output any more; 2 after a mistake in the
        arguments, which is said in one line on stderr; 130 after Ctrl-C.
    """
    try:
        status = app(args=argv, prog_name=PROGRAM, standalone_mode=False)
        sys.stdout.flush()
    except USAGE_ERROR as error:
        return _fail(describe(error))
    except UserError as error:
        return _fail(str(error))
    except BrokenPipeError:
        # The interpreter flushes at exit what is still buffered, and must be able to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return int(status or 0)


def _fail(message: str) -> int:
    print(f"error: {one_line(message)}", file=sys.stderr)
    return 2


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"{PROGRAM} {efficient_vits.__version__}")
        raise typer.Exit


@app.callback(help="Efficient vision transformers: which there are, what they cost, what they see.")
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    pass
