import subprocess
from pathlib import Path

import pytest

from efficient_vits.efficiency.commits import commit


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *who, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_a_commit_is_that_of_the_modules_own_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "of_a_checkout.py").write_text("")
    (tmp_path / "beside_it.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert commit("of_a_checkout") is None
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "of_a_checkout.py")
    git(tmp_path, "commit", "--quiet", "-m", "m")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert commit("of_a_checkout") == head
    # What is not tracked, as an installed copy in somebody's repository, is not of its commit.
    assert commit("beside_it") is None
    (tmp_path / "of_a_checkout.py").write_text("changed = True")
    assert commit("of_a_checkout") == f"{head}+"
    assert commit("sys") is None
    monkeypatch.setenv("PATH", "/nowhere")
    assert commit("of_a_checkout") is None
