"""Sweeps in real processes: killed, failing, resumed. Their models are timm's smallest."""

import contextlib
import json
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from efficient_vits.efficiency import SweepProgress, sweep
from efficient_vits.efficiency.journal import JournalError, read_rows, write_part
from efficient_vits.efficiency.launchers import failure
from efficient_vits.efficiency.sweep import make_jobs
from efficient_vits.results import read_measurements

QUICK = {"img_sizes": [32], "device": "cpu", "throughput": False, "memory": False}
# What a model of somebody else may do to the process that measures it.
MISCHIEF = """
import os, subprocess, sys, time
from pathlib import Path

print("imported")
here = Path(__file__).parent

def note(pid):
    with open(here / "pids", "a") as file:
        file.write(f"{pid}\\n")

def slow(model):
    note(os.getpid())
    while (here / "hold").exists():
        time.sleep(0.05)
    time.sleep(1.5)
    return model

def first_time_only(model):
    print('{"row": {"key": "no row of ours"}}', flush=True)
    if (here / "marker").exists():
        return model
    (here / "marker").touch()
    raise RuntimeError("CUDA out of memory:\\n tried to allocate [much]")

def leave(model):
    print("good bye", flush=True)
    os._exit(3)

def killed(model):
    os.kill(os.getpid(), 9)

def stuck(model):
    note(os.getpid())
    note(subprocess.Popen(["sleep", "1000"]).pid)
    time.sleep(1000)
"""


@pytest.fixture
def mischief(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a module that is imported as `mischief`."""
    (tmp_path / "mischief.py").write_text(MISCHIEF)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def noted(folder: Path) -> list[int]:
    path = folder / "pids"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def wait_for(condition: Any, what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        # A zombie has ended; who collects it is not our business.
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@contextlib.contextmanager
def sweeping(arguments: dict[str, Any]) -> Iterator[int]:
    """A sweep in a process of its own, which is killed at the end."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            sweep(**arguments)
        os._exit(0)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_killed_twice_every_row_is_there_once(mischief: Path) -> None:
    output = mischief / "rows.jsonl"
    names = ["test_resnet", "test_vit", "test_byobnet"]
    arguments: dict[str, Any] = {**QUICK, "names": names, "output": output}
    arguments["transform"] = "mischief:slow"
    seed = random.randrange(1 << 30)
    print("seed", seed)
    moments = random.Random(seed)

    hold = mischief / "hold"
    hold.touch()
    with sweeping(arguments):  # killed while a model is measured, which would never end by itself
        wait_for(lambda: noted(mischief), "the first model")
        time.sleep(moments.uniform(0, 1))
    try:
        wait_for(lambda: not any(map(is_running, noted(mischief))), "the end of the worker")
    finally:
        hold.unlink()
    assert output.read_bytes() == b""

    with sweeping(arguments):  # killed at any moment after the first row
        wait_for(lambda: output.read_bytes().endswith(b"\n"), "the first row")
        time.sleep(moments.uniform(0, 5))
    wait_for(lambda: not any(map(is_running, noted(mischief))), "the end of the worker")
    before = read_rows(output)
    assert [row["name"] for row in before] == names[: len(before)]
    assert before

    with open(output, "ab") as file:  # and once while it writes a row
        file.write(output.read_bytes().splitlines(keepends=True)[0][: moments.randrange(1, 900)])
    assert read_rows(output) == before
    assert len(read_measurements(output)) == len(before)

    seen: list[SweepProgress] = []
    rows = sweep(**arguments, on_progress=seen.append)
    assert [row["name"] for row in rows] == names
    assert [json.loads(line) for line in output.read_text().splitlines()] == rows
    assert len({row["key"] for row in rows}) == 3
    assert rows[: len(before)] == before
    assert [run.name for run in read_measurements(output)] == names
    assert not any("error" in row for row in rows)
    # Only what was under way when it was killed was measured twice.
    assert len(noted(mischief)) <= 3 + 2
    if seen:
        assert (seen[0].step, seen[0].done, seen[0].total) == ("starting", len(before), 3)
        last = seen[-1]
        assert (last.step, last.done, last.failed, last.seconds_left) == ("measured", 3, 0, 0)


def test_failures_have_rows_and_run_again_on_request(mischief: Path) -> None:
    output = mischief / "rows.jsonl"
    arguments: dict[str, Any] = {**QUICK, "output": output, "imports": ["mischief"]}

    (killed,) = sweep(["test_resnet"], transform="mischief:killed", **arguments)
    assert killed["reason"] == "killed"
    assert killed["error"].startswith("killed by SIGKILL")
    (left,) = sweep(["test_resnet"], transform="mischief:leave", **arguments)
    assert (left["reason"], left["output"].splitlines()[-1]) == ("exit", "good bye")
    assert "ended with status 3" in left["error"]

    again = {**arguments, "transform": "mischief:first_time_only"}
    (row,) = sweep(["test_resnet"], **again)
    assert row["reason"] == "out of memory"
    assert row["error"] == "RuntimeError: CUDA out of memory: tried to allocate [much]"
    assert "in first_time_only" in row["output"]
    assert row["environment"]["torch"]
    with pytest.warns(UserWarning, match="left out, not measured: test_resnet: killed by"):
        assert read_measurements(output) == []

    content = output.read_bytes()
    assert sweep(["test_resnet"], **again) == [row]
    assert output.read_bytes() == content
    (better,) = sweep(["test_resnet"], **again, retry_failed=True)
    assert better["key"] == row["key"]
    assert (better["name"], better["transform"]) == ("test_resnet", "first_time_only")
    assert better["job"] == row["job"]
    assert better["provenance"].keys() == {"commit", "state_before", "seconds"}
    assert better["provenance"]["commit"].keys() == {"mischief"}
    assert better["environment"].keys() >= {"commit", "state", "variables"}
    assert output.read_text().count("\n") == 4
    with pytest.warns(UserWarning, match="left out"):
        assert [run.name for run in read_measurements(output)] == ["test_resnet"]


def test_what_takes_too_long_is_ended(tmp_path: Path) -> None:
    (row,) = sweep(["test_resnet"], output=tmp_path / "rows.jsonl", timeout=0.3, **QUICK)
    assert row["reason"] == "timeout"
    assert row["error"] == "no result in 0.3 s, at 'starting'"
    assert read_rows(tmp_path / "rows.jsonl") == [row]


def test_an_interrupted_sweep_leaves_no_process(mischief: Path) -> None:
    def interrupt(progress: SweepProgress) -> None:
        if progress.step == "building":
            wait_for(lambda: len(noted(mischief)) == 2, "the model and what it starts")
            assert all(map(is_running, noted(mischief)))
            raise KeyboardInterrupt

    output = mischief / "rows.jsonl"
    how: dict[str, Any] = {"transform": "mischief:stuck", "on_progress": interrupt, **QUICK}
    with pytest.raises(KeyboardInterrupt):
        sweep(["test_resnet"], output=output, **how)
    wait_for(lambda: not any(map(is_running, noted(mischief))), "the end of the processes")
    assert read_rows(output) == []


def test_rows_that_arrived_in_the_meantime_are_taken(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"output": tmp_path / "rows.jsonl", "img_sizes": [32]}
    (job,) = make_jobs(
        ["test_vit"],
        img_sizes=[32],
        batch_sizes=(),
        model_arguments={},
        options={},
        transform=None,
        seed=0,
        imports=(),
    )
    parts = tmp_path / "rows.jsonl.parts"
    write_part(parts, {"key": job.key, "name": "test_vit", "parameters": 7})
    (row,) = sweep(["test_vit"], **arguments)
    assert row["parameters"] == 7
    assert list(parts.iterdir()) == []
    # A second result of the same job adds nothing, be it good or bad.
    for second in ({**row, "parameters": 8}, failure(job, "launcher", "gone")):
        write_part(parts, second)
        assert sweep(["test_vit"], **arguments) == [row]
        assert list(parts.iterdir()) == []
    assert (tmp_path / "rows.jsonl").read_text().count("\n") == 1


def test_what_is_wrong_is_said_before_anything_runs(tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    for names, arguments, message in (
        (["test_vit"], {"timeout": 0}, "timeout must be a positive number of seconds, got 0"),
        (["test_vti"], {}, "near names: test_vit"),
        (["test_vit"], {"devise": "cpu"}, "no option 'devise'"),
    ):
        with pytest.raises(ValueError, match=message):
            sweep(names, output=output, **arguments)
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        sweep(["test_vit"], output=output, imports=["no_such_module"])
    assert not output.exists()
    output.write_text("my notes\n")
    with pytest.raises(JournalError, match="is no sweep's file"):
        sweep(["test_vit"], output=output)
    assert output.read_text() == "my notes\n"
