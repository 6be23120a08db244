import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from efficient_vits.efficiency import Local
from efficient_vits.efficiency.jobs import Job
from efficient_vits.efficiency.launchers import failure, run_here

# Stands for the worker: it tells what it was given, without the seconds that torch takes to import.
STAND_IN = """
import json, os, sys, time

def main():
    answers = os.fdopen(int(sys.argv[1]), "w")
    job = json.loads(sys.stdin.readline())
    name = job["name"]
    def say(**message):
        answers.write(json.dumps(message) + "\\n")
        answers.flush()
    say(step="working")
    print("printed", flush=True)
    if name == "slow":
        time.sleep(0.5)
    if name == "mute":
        answers.close()
        time.sleep(1000)
    if name == "nothing":
        sys.exit("no idea")
    if name == "long":
        name = "x" * 1_000_000
    say(row={"key": "k", "name": name, "gpu": os.environ.get("CUDA_VISIBLE_DEVICES")})
    time.sleep(1000)
"""


@pytest.fixture
def path(tmp_path: Path) -> list[str]:
    """Where processes import the stand-in from, and nothing of ours."""
    folder = tmp_path / "efficient_vits" / "efficiency"
    folder.mkdir(parents=True)
    (folder / "_worker.py").write_text(STAND_IN)
    for package in (folder, folder.parent):  # or the installed package would come first
        (package / "__init__.py").touch()
    return [str(tmp_path), *(entry for entry in sys.path if "python3" in entry)]


def rows(path: list[str], *names: str, steps: Any = None, **changes: Any) -> list[dict[str, Any]]:
    arguments: dict[str, Any] = {"slots": [{}], "timeout": 60, **changes}
    on_step = (lambda job, step: None) if steps is None else steps
    return list(run_here([Job(n) for n in names], path=path, on_step=on_step, **arguments))


def test_one_after_another_and_nobody_is_waited_for(path: list[str]) -> None:
    steps: list[tuple[str, str]] = []
    found = rows(path, "a", "b", steps=lambda job, step: steps.append((job.name, step)))
    assert [row["name"] for row in found] == ["a", "b"]
    assert steps == [("a", "starting"), ("a", "working"), ("b", "starting"), ("b", "working")]


def test_a_job_on_each_gpu(path: list[str]) -> None:
    slots = [{"CUDA_VISIBLE_DEVICES": "5"}, {"CUDA_VISIBLE_DEVICES": "7"}]
    found = rows(path, "slow", "a", "b", slots=slots)
    assert {row["name"]: row["gpu"] for row in found} == {"slow": "5", "a": "7", "b": "7"}
    assert [row["name"] for row in found][-1] == "slow"


def test_a_row_longer_than_a_pipe_holds(path: list[str]) -> None:
    (row,) = rows(path, "long")
    assert len(row["name"]) == 1_000_000


def test_no_answer_is_a_failure(path: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = rows(path, "nothing")
    assert (row["reason"], row["name"], row["key"]) == ("exit", "nothing", Job("nothing").key)
    assert row["error"] == "ended with status 1 without a result, at 'working'"
    assert row["output"] == "printed\nno idea\n"
    assert row["job"] == json.loads(json.dumps(Job("nothing").to_dict()))
    monkeypatch.setattr("efficient_vits.efficiency.launchers._DYING_SECONDS", 0.1)
    (row,) = rows(path, "mute")
    assert (row["reason"], row["error"]) == ("exit", "ended without a result, at 'working'")
    (row,) = rows(["/nowhere"], "a")
    assert row["reason"] == "exit"
    assert "Error" in row["output"]


def test_no_descriptor_is_left_open(path: list[str]) -> None:
    before = len(os.listdir("/dev/fd"))
    rows(path, "a", "nothing", "b")
    assert len(os.listdir("/dev/fd")) == before


def test_gpus_are_those_that_this_process_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert Local().slots() == [{}]
    assert Local(workers=2).slots() == [{}, {}]
    assert Local(gpus=[2, 0, 2]).slots() == [
        {"CUDA_VISIBLE_DEVICES": "2"},
        {"CUDA_VISIBLE_DEVICES": "0"},
    ]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6,GPU-7")
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in Local(gpus="all").slots()] == [
        "4",
        "6",
        "GPU-7",
    ]
    with pytest.raises(ValueError, match=r"gpus=\[3\] are not all here; torch sees \[0, 1, 2\]"):
        Local(gpus=[3])
    with pytest.raises(ValueError, match=r"gpus=\[\] are not all here"):
        Local(gpus=[])
    with pytest.raises(ValueError, match="workers=2 does not go along"):
        Local(workers=2, gpus="all")
    with pytest.raises(ValueError, match="workers must be a positive integer, got 0"):
        Local(workers=0)


def test_of_long_output_the_end_is_kept() -> None:
    row = failure(Job("a"), "exit", "gone", output="x" * 5000 + "end", environment={"cpu": "z80"})
    assert len(row["output"]) == 2000
    assert row["output"].endswith("xend")
    assert row["environment"] == {"cpu": "z80"}
    assert "output" not in failure(Job("a"), "exit", "gone", output=" \n")
