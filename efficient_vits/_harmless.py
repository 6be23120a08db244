"""What authors' files hold beside tensors, and how it is read without running anything.

PyTorch's restricted unpickler refuses every class it does not know. Training code likes to store
its settings along with the weights: command line arguments, configuration nodes, numbers of NumPy.
Their names are read here as classes that take everything and keep nothing.
"""

from collections import OrderedDict
from contextlib import AbstractContextManager
from typing import Any

import torch


class Forgotten:
    """Stands for an object of a file's settings; keeps nothing of it."""

    def __init__(self, *args: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


NAMES = (
    "argparse.Namespace",
    "pathlib.Path",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "pathlib._local.PosixPath",
    "pathlib._local.WindowsPath",
    "numpy.dtype",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
)
# The unpickler fills plain dictionaries only; these are what a configuration node is.
DICTIONARIES = ("yacs.config.CfgNode",)


def harmless_settings() -> AbstractContextManager[Any]:
    """Within it, PyTorch reads files with such settings, and forgets these."""
    classes: list[Any] = [(Forgotten, name) for name in NAMES]
    classes += [(OrderedDict, name) for name in DICTIONARIES]
    return torch.serialization.safe_globals(classes)
