import importlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from efficient_vits.efficiency import Local, Submitit, SweepProgress
from efficient_vits.efficiency.journal import read_rows

Run = Callable[..., tuple[int, str, str]]

# `efficient_vits.cli.sweep` is the module, whatever its functions are called.
sweep_module = importlib.import_module("efficient_vits.cli.sweep")


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "rows.jsonl"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the command hands to `sweep`, which does not run."""
    calls: list[dict[str, Any]] = []

    def sweep(names: list[str], **arguments: Any) -> list[Any]:
        calls.append({"names": names, **arguments})
        return [{"name": name, "key": name} for name in names]

    monkeypatch.setattr(sweep_module, "sweep", sweep)
    return calls


def test_a_sweep_and_its_comparison(output: Path, run: Run) -> None:
    size = ("--img-size", "32", "--device", "cpu", "--batch-size", "1", "--no-throughput")
    status, out, err = run("sweep", "test_resnet", "-o", output, *size, "--fuse")
    assert (status, out) == (0, f"{output}: 1 measured, 0 failed\n")
    assert err == "efficient-vits: 1/1 test_resnet: measured, 0 min 0 s left\n"
    rows = read_rows(output)
    assert [(row["job"]["img_size"], row["transform"]) for row in rows] == [([32, 32], "fuse")]
    # Again, nothing is left to do.
    content = output.read_bytes()
    status, out, err = run("sweep", "test_resnet", "-o", output, *size, "--fuse", "--json")
    assert (status, err) == (0, "")
    assert json.loads(out) == rows
    assert output.read_bytes() == content
    status, out, _ = run("compare", output, "--baseline", "test_resnet", "--columns", "parameters")
    assert status == 0
    assert out.splitlines()[-1] == "Ratios are relative to test_resnet."


def test_options_are_handed_through(
    output: Path, run: Run, asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    argv = "--img-size 64 --img-size 64x96 --batch-size 1 --batch-size 8 --no-memory --seed 3"
    more = "--timeout 60 --retry-failed --import json --import csv --workers 2 --device cpu"
    keys = ("--model-arg", "depth=2", "--model-arg", "mlp=geglu", "--option", "threads=[1, 2]")
    assert run("sweep", "vit_s16", "-o", output, *argv.split(), *more.split(), *keys)[0] == 0
    (call,) = asked
    del call["on_progress"]
    assert call == {
        "names": ["vit_s16"],
        "output": output,
        "img_sizes": [(64, 64), (64, 96)],
        "batch_sizes": [1, 8],
        "model_arguments": {"depth": 2, "mlp": "geglu"},
        "transform": None,
        "imports": ["json", "csv"],
        "seed": 3,
        "timeout": 60.0,
        "retry_failed": True,
        "launcher": Local(workers=2),
        "throughput": True,
        "memory": False,
        "device": "cpu",
        "threads": [1, 2],
    }
    assert sys.path[0] == ""  # modules beside the user are found


def test_launchers(output: Path, run: Run, asked: list[dict[str, Any]]) -> None:
    for argv, launcher in (
        ((), Local()),
        (("--launcher", "local-submitit"), Submitit("local")),
        (
            ("--launcher", "slurm", "--slurm", "partition=gpu", "--slurm", "time=30"),
            Submitit("slurm", {"partition": "gpu", "time": 30}),
        ),
    ):
        assert run("sweep", "vit_s16", "-o", output, *argv)[0] == 0
        assert asked[-1]["launcher"] == launcher


def test_patterns_are_the_catalogs_first(
    output: Path, run: Run, asked: list[dict[str, Any]]
) -> None:
    assert run("sweep", "hydra_*16", "test_res*", "-o", output)[0] == 0
    assert {"hydra_ti16", "hydra_s16", "test_res*"} <= set(asked[0]["names"])
    assert "hydra_*16" not in asked[0]["names"]


def test_failures_are_named(output: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"name": "vit_s16", "key": "k", "reason": "timeout", "error": "no result\nin [60] s"}
    monkeypatch.setattr(sweep_module, "sweep", lambda names, **arguments: [row, {"name": "b"}])
    status, out, _ = run("sweep", "vit_s16", "-o", output)
    assert status == 1
    assert out.splitlines() == [
        f"{output}: 1 measured, 1 failed",
        "vit_s16 (timeout): no result in [60] s",
    ]


def test_progress_on_a_terminal(output: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def sweep(names: list[str], *, on_progress: Any, **arguments: Any) -> list[Any]:
        on_progress(SweepProgress("vit_s16", "memory", 3, 1, 7, 3725.0))
        on_progress(SweepProgress("vit_s16", "measured", 4, 1, 7, 61.4))
        return []

    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sweep_module, "sweep", sweep)
    run("sweep", "vit_s16", "-o", output)
    shown = terminal.getvalue()
    assert "vit_s16: memory, 1 h 2 min left" in shown
    assert "3/7" in shown
    assert "vit_s16: measured, 1 min 1 s left" in shown
    assert "efficient-vits: 4/7" not in shown


def test_mistakes(output: Path, refused: Callable[..., str]) -> None:
    start = ("sweep", "vit_s16", "-o", output)
    for argv, message in (
        (("--launcher", "lsf"), "--launcher 'lsf' is none; accepted are local, slurm"),
        (("--slurm", "partition=gpu"), "needs --launcher slurm"),
        (("--launcher", "slurm", "--gpus", "0"), "--workers and --gpus are for --launcher local"),
        (("--launcher", "slurm", "--slurm", "gpu"), "--slurm 'gpu' is no KEY=VALUE"),
        (("--gpus", "first"), "--gpus 'first' are no GPUs"),
        (("--gpus", "99"), "gpus=[99] are not all here"),
        (("--workers", "0"), "--workers '0'"),
        (("--img-size", "64x"), "'64x'"),
        (("--batch-size", "-1"), "'-1'"),
        (("--option", "a=1", "--option", "a=2"), "--option has 'a' twice"),
        (("--option", "devise=cpu"), "no option 'devise'; accepted are device"),
        (("--import", "no_such_module"), "no_such_module"),
        (("--timeout", "0"), "timeout must be a positive number"),
    ):
        assert message in refused(*start, *argv), argv
    assert "near names" in refused("sweep", "vit_s61", "-o", output)
    assert not output.exists()
    output.write_text("notes\n")
    assert "is no sweep's file" in refused(*start)
