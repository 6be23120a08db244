"""Which commit of its repository a module's code is."""

import importlib
import shutil
import subprocess
from pathlib import Path


def commit(module: str) -> str | None:
    """The commit of the git checkout that a module's file is tracked in.

    None where it is in none, as an installed copy that merely lies in somebody's repository.

    Args:
        module: importable name; of a package, all of its folder counts.

    Returns:
        The commit, with "+" behind it where tracked files of the module differ from it.
    """
    file = getattr(importlib.import_module(module), "__file__", None)
    if file is None:
        return None
    path = Path(file).resolve()
    tracked = _git(path.parent, "ls-files", "--error-unmatch", path.name)
    head = _git(path.parent, "rev-parse", "HEAD")
    if not tracked or not head:
        return None
    scope = path.parent if path.name == "__init__.py" else path
    changed = _git(path.parent, "status", "--porcelain", "--untracked-files=no", "--", str(scope))
    return head + "+" * bool(changed)


def _git(folder: Path, *arguments: str) -> str:
    """What git says; "" where it is not there or refuses."""
    program = shutil.which("git")
    if program is None:
        return ""
    command = [program, "-C", str(folder), *arguments]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return answer.stdout.strip() if answer.returncode == 0 else ""
