"""The command line: `efficient-vits`, one file per subcommand.

A subcommand is a function in a file of this folder, decorated with ``@app.command(...)``; files
whose names begin with an underscore help them.
"""

from efficient_vits._discover import import_submodules
from efficient_vits.cli._app import main

__all__ = ["main"]

import_submodules(__name__, __path__)
