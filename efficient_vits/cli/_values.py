"""Values of options that several subcommands have."""

import re
from collections.abc import Sequence
from typing import Annotated

import typer

from efficient_vits.cli._errors import UserError

Size = tuple[int, int]

ImgSize = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Image size in pixels, 224 or 224x320 (height x width); by default the model's own.",
    ),
]


def parse_size(text: str) -> Size:
    """Height and width in pixels."""
    match = re.fullmatch(r"([0-9]{1,5})(?:x([0-9]{1,5}))?", text)
    size = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if 0 in size:
        raise UserError(
            f"--img-size {text!r} is no image size; accepted are positive numbers of pixels such "
            f"as 224 or 224x320 (height x width)"
        )
    return size


def parse_positive(text: str, *, option: str) -> int:
    """A positive integer; typer's own message would not repeat what was passed."""
    number = int(text) if re.fullmatch("[0-9]{1,9}", text) else 0
    if not number:
        raise UserError(f"{option} {text!r} is no number; accepted are 1, 2, 3, ...")
    return number


def parse_choices(text: str, accepted: Sequence[str], *, option: str) -> list[str]:
    """Some of the accepted words, separated by commas."""
    words = list(dict.fromkeys(word.strip() for word in text.split(",")))
    wrong = next((word for word in words if word not in accepted), None)
    if wrong is not None:
        raise UserError(f"{option} {wrong!r} is not accepted; accepted are {', '.join(accepted)}")
    return words
