"""What training shows while it runs and when it is done."""

import io
import re
import sys

import pytest
import torch

from efficient_vits.cli._training import Display, default_workers, duration, print_result
from efficient_vits.training import EpochRow, Recipe, Update, plan_batches

SMALL = ("--data", "digits", "--cpu", "--workers", "0", "--set", "epochs=2", "--set", "img_size=16",
         "--set", "batch_size=448")  # fmt: skip
TINY = ("--arg", "depth=1", "--arg", "embed_dim=32", "--arg", "num_heads=2")
RECIPE = Recipe(name="short", epochs=4, warmup_epochs=0)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("environment", "workers"),
    [
        ({}, 7),
        ({"LOCAL_WORLD_SIZE": "4"}, 1),
        ({"LOCAL_WORLD_SIZE": "16"}, 1),
        ({"LOCAL_WORLD_SIZE": "2", "SUBMITIT_EXECUTOR": "local"}, 3),
        # Slurm gave this task its own eight cores.
        ({"LOCAL_WORLD_SIZE": "2", "SUBMITIT_EXECUTOR": "slurm", "SLURM_CPUS_PER_TASK": "8"}, 7),
        ({"LOCAL_WORLD_SIZE": "2", "SUBMITIT_EXECUTOR": "slurm"}, 3),
    ],
)
def test_loading_processes(environment, workers, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(8)))
    for name in ("LOCAL_WORLD_SIZE", "SUBMITIT_EXECUTOR", "SLURM_CPUS_PER_TASK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert default_workers() == workers


def test_loading_processes_where_the_system_tells_only_all_cores(monkeypatch):
    """As on macOS."""
    monkeypatch.delattr("os.sched_getaffinity")
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert default_workers() == 7


def update(epoch=1, index=2, **losses):
    terms = {name: torch.tensor(value) for name, value in losses.items()}
    return Update(epoch, index, terms, None, 1e-3, 2.0)


def row(**losses):
    return EpochRow(2, 10, 1e-3, losses, 1.0, 50.0, 90.0, 2.0, 55.0, 10.0, 1024.0, 0.1, 3 * 2**30)


def shown(stream, monkeypatch, *, quiet=False):
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    with Display(RECIPE, quiet=quiet) as display:
        display.begin(plan_batches(2048, 2, 256), 5)
        display.update(update(task=1.5, auxiliary=0.25))
        display.epoch(row(task=1.5, auxiliary=0.25))
        display.epoch(row(task=1.25, auxiliary=0.0))
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())


def test_a_log_has_a_line_per_epoch(monkeypatch):
    plan, first, second = shown(io.StringIO(), monkeypatch).splitlines()
    assert plan == (
        "short: 4 epochs of 5 updates; 2048 images per update = 2 processes x 4 passes x 256 images"
    )
    assert first == (
        "epoch 2/4  task 1.5000  auxiliary 0.2500  top-1 50.00 %  averaged 55.00 %  lr 1.00e-03  "
        "1024 images/s  3.00 GiB  0:20 left"
    )
    assert "auxiliary" not in second  # a model without such a term


def test_a_terminal_has_a_line_that_moves(monkeypatch):
    text = shown(Terminal(), monkeypatch)
    # 1.5 + 0.25; 2048 images in 2 s; 12 of 20 updates are left.
    assert "epoch 2/4" in text
    assert "loss 1.750  lr 1.00e-03  1024 images/s  0:24 left" in text


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_other_processes_and_quiet_runs_show_nothing(stream, monkeypatch, capsys):
    assert shown(stream(), monkeypatch, quiet=True).strip() == ""
    monkeypatch.setenv("RANK", "1")
    assert shown(stream(), monkeypatch).strip() == ""
    print_result({}, None, as_json=True)
    assert capsys.readouterr().out == ""


def test_json_is_the_result_alone(run_json, tmp_path):
    import json

    folder = tmp_path / "run"
    result = run_json("train", "vit_ti16", *SMALL, *TINY, "-o", folder)
    assert result == json.loads((folder / "result.json").read_text())
    assert len((folder / "epochs.jsonl").read_text().splitlines()) == 2
    following = run_json("finetune", folder, *SMALL, "--preset", "digits", "-o", tmp_path / "next")
    assert following["lineage"]


def test_durations():
    assert [duration(x) for x in (5, 65, 3725)] == ["0:05", "1:05", "1:02:05"]
