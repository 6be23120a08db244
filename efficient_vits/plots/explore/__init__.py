"""The interactive page: all runs in one HTML file that works without a network.

The page is made of ``page.html``, ``page.css`` and the scripts beside this file, of plotly.js as
the installed plotly package has it, and of the runs as JSON. It needs plotly:
``pip install 'efficient-vits[plots]'``.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

from efficient_vits.plots.explore._page import page
from efficient_vits.plots.explore._rows import page_data
from efficient_vits.results import as_rows

__all__ = ["explore"]


def explore(output: str | os.PathLike[str], runs: Any = None) -> Path:
    """Write a page on which runs are compared, filtered, sorted and looked up.

    Axes are any two of `efficient_vits.results.METRICS`; the front of what is visible is drawn by
    the rules of `efficient_vits.results.front`, one per class of device where an axis depends on
    the device. The page is one file of about 5 MB that loads nothing and connects to nothing.

    Args:
        output: File to write. One that is there is replaced, when the new page is complete.
        runs: A frame of `load_runs`, or runs; by default the benchmark's. Runs that are not the
            benchmark's get a marker of their own.

    Returns:
        The path of the file.

    Raises:
        ImportError: plotly is not installed.
        ValueError: There is no run, or one has a figure that is no finite number of 0 or more.
        OSError: The file cannot be written.
    """
    path = Path(output)
    _replace(path, page(page_data(as_rows(runs))))
    return path


def _replace(path: Path, text: str) -> None:
    """Write a file so that nobody ever sees half of it."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    part = Path(name)
    try:
        with open(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        # mkstemp lets nobody but the owner read; a page is as readable as any other file.
        umask = os.umask(0)
        os.umask(umask)
        part.chmod(0o666 & ~umask)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
