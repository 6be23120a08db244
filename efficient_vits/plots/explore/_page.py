"""The page's text: template, style and scripts, plotly.js and the data, in one document."""

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from importlib import resources
from typing import Any

# In the order in which they build upon each other.
SCRIPTS = ("front", "runs", "format", "marks", "card", "labels", "chart", "table", "controls")

# Nothing is fetched and nothing is sent; scripts are those whose digest stands here.
_POLICY = (
    "default-src 'none'; connect-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; "
    "img-src data: blob:; base-uri 'none'; form-action 'none'"
)


def page(data: Mapping[str, Any]) -> str:
    """The HTML document.

    Args:
        data: Of `page_data`.

    Raises:
        ImportError: plotly is not installed.
    """
    plotly, script = _plotly(), _script()
    parts = {
        "policy": _POLICY.format(scripts=f"{_digest(plotly)} {_digest(script)}"),
        "style": _asset("page.css"),
        "data": embedded(data),
        "plotly": plotly,
        "script": script,
    }
    # In one pass, so that braces within a part are never taken for a place.
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], _asset("page.html"))


def embedded(data: Any) -> str:
    """JSON in which nothing can end the element that it stands in, or open another."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    # As escapes the characters are the same to JSON, and nothing to HTML.
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _script() -> str:
    files = "\n".join(_asset(f"{name}.js") for name in SCRIPTS)
    return f'(() => {{\n"use strict";\n{files}}})();'


def _digest(script: str) -> str:
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError(
            "the interactive page needs plotly: pip install 'efficient-vits[plots]'"
        ) from error
    # The digest is that of the text as a browser reads it, in which lines end in \n.
    text: str = get_plotlyjs()
    return text.replace("\r\n", "\n").replace("\r", "\n")
