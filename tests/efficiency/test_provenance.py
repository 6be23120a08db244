import datetime
import subprocess
from pathlib import Path

import pytest

from efficient_vits.efficiency import provenance as module
from efficient_vits.efficiency.provenance import clocks, commit, provenance


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
    assert commit("of_a_checkout") == f"{head}+changes"
    assert commit("sys") is None
    monkeypatch.setenv("PATH", "/nowhere")
    assert commit("of_a_checkout") is None


def test_clocks_of_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CPU_CLOCKS", tmp_path)
    (tmp_path / "scaling_cur_freq").write_text("2400000\n")
    (tmp_path / "scaling_governor").write_text("powersave\n")
    assert clocks("cpu") == {"scaling_cur_freq": "2400 MHz", "scaling_governor": "powersave"}


def test_clocks_of_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        '#!/bin/sh\necho "$@" >&2\necho 1410 MHz, 1593 MHz, 1980 MHz, 2619 MHz, 700 W, 31\n'
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(module.torch.cuda, "get_device_properties", lambda device: object())
    found = clocks("cuda:0")
    assert (found["clocks.sm"], found["power.limit"]) == ("1410 MHz", "700 W")
    tool.write_text("#!/bin/sh\necho Unable to determine; exit 9\n")
    assert clocks("cuda:0") == {}
    tool.unlink()
    assert clocks("cuda:0") == {}


def test_where_a_row_comes_from() -> None:
    found = provenance(["efficient_vits"], "cpu")
    assert found.keys() == {"host", "started", "commit", "clocks"}
    assert datetime.datetime.fromisoformat(found["started"]).utcoffset() == datetime.timedelta(0)
