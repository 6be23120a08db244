"""What a user did wrong, in one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer

# typer brings click along, in some versions under a name of its own; in all of them this is click's
# UsageError, the parent of everything that is wrong with a command line.
USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]


class UserError(Exception):
    """A mistake of the user's: what was passed, and what is accepted."""


@contextmanager
def mistakes(*kinds: type[Exception], prefix: str = "") -> Iterator[None]:
    """Make exceptions of these kinds a UserError, with `prefix` before their text."""
    try:
        yield
    except kinds as error:
        raise UserError(f"{prefix}{error}") from error


def one_line(text: object) -> str:
    return " ".join(str(text).split())


def describe(error: Any) -> str:
    """click's own message, and what the command accepts."""
    message = error.format_message().rstrip(".")
    if error.ctx is None:
        return f"{message}."
    command = error.ctx.command
    accepted = [
        max(parameter.opts, key=len)
        if parameter.param_type_name == "option"
        else (parameter.metavar or parameter.name).upper()
        for parameter in command.get_params(error.ctx)
    ]
    accepted += sorted(getattr(command, "commands", ()))
    return f"{message} ({error.ctx.command_path} accepts {', '.join(accepted)})"
