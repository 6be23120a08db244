"""Names that somebody may have meant."""

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str], *, shown: int = 3) -> str:
    """``"; near names: a, b"`` for an error message, or all of a few, or nothing."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=shown)
    if near:
        return f"; near names: {', '.join(near)}"
    return f"; accepted: {', '.join(names)}" if len(names) <= 40 else ""
