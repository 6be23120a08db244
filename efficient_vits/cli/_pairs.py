"""Options of the form KEY=VALUE."""

import json
from collections.abc import Sequence
from typing import Any

from efficient_vits.cli._errors import UserError


def parse_pairs(texts: Sequence[str], *, option: str) -> dict[str, Any]:
    """A dictionary; values are JSON where they can be read as such, and text otherwise."""
    pairs: dict[str, Any] = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign or not key.isidentifier():
            raise UserError(f"{option} {text!r} is no KEY=VALUE, such as threads=4")
        if key in pairs:
            raise UserError(f"{option} has {key!r} twice")
        try:
            pairs[key] = json.loads(value)
        except ValueError:
            pairs[key] = value
    return pairs
