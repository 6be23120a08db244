"""Sweeps through submitit: for real on this machine, and against a stand-in for Slurm."""

import sys
from pathlib import Path
from typing import Any

import pytest

from efficient_vits.efficiency import Submitit, sweep
from efficient_vits.efficiency import slurm as slurm_module
from efficient_vits.efficiency.journal import part_path, read_rows, write_part

QUICK: dict[str, Any] = {
    "img_sizes": [32],
    "device": "cpu",
    "throughput": False,
    "memory": False,
}


def test_submitits_local_executor(tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    steps: list[str] = []
    (row,) = sweep(
        ["test_resnet"],
        output=output,
        launcher=Submitit("local"),
        on_progress=lambda progress: steps.append(progress.step),
        **QUICK,
    )
    assert row.get("error") is None
    assert row["flops"]["total"] > 0
    assert read_rows(output) == [row]
    assert steps[0].startswith("submitted as ")
    assert steps[1:] == ["measured"]
    parts = tmp_path / "rows.jsonl.parts"
    assert [path.name for path in parts.iterdir()] == ["logs"]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands that answer as Slurm would; the folder has what was submitted."""
    folder = tmp_path / "bin"
    folder.mkdir()
    scripts = {
        "srun": "",
        "sbatch": f'cat "$1" > "{tmp_path}/submitted"; echo Submitted batch job 4711',
        "sacct": "printf 'JobID|State|NodeList\\n4711_0|RUNNING|a\\n4711_1|NODE_FAIL|b\\n'",
    }
    for name, line in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    monkeypatch.setattr(slurm_module, "_GRACE_SECONDS", {"slurm": 0.0})
    monkeypatch.setattr(slurm_module, "_POLL_SECONDS", {"slurm": 0.01})
    return tmp_path


def test_an_array_of_slurm(cluster: Path) -> None:
    output = cluster / "rows.jsonl"
    parts = cluster / "rows.jsonl.parts"
    launcher = Submitit("slurm", {"partition": "gpu", "gpus_per_node": 1, "array_parallelism": 4})
    keys: dict[str, str] = {}

    class Watched(Submitit):
        """Plays the member that measures, as soon as its job is submitted."""

        def run(self, jobs: Any, *, on_step: Any, **rest: Any) -> Any:
            keys.update((job.name, job.key) for job in jobs)

            def step(job: Any, text: str) -> None:
                on_step(job, text)
                if text == "submitted as 4711_0":
                    write_part(parts, {"key": job.key, "name": job.name, "parameters": 5})

            return super().run(jobs, on_step=step, **rest)

    done, lost = sweep(
        ["test_resnet", "test_vit"],
        output=output,
        timeout=600,
        launcher=Watched(launcher.cluster, launcher.parameters),
    )
    assert (done["key"], done["parameters"]) == (keys["test_resnet"], 5)
    assert (lost["key"], lost["reason"]) == (keys["test_vit"], "launcher")
    assert lost["error"] == "job 4711_1 of slurm ended as NODE_FAIL without a result"
    assert read_rows(output) == [done, lost]
    assert not part_path(parts, done["key"]).exists()
    submitted = (cluster / "submitted").read_text()
    for flag in ("--array=0-1%2", "--partition=gpu", "--gpus-per-node=1", "--time=15"):
        assert f"#SBATCH {flag}\n" in submitted
    assert "--job-name=efficient-vits-sweep" in submitted


def test_what_cannot_be_submitted(
    cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="cluster must be 'slurm' or 'local', got 'lsf'"):
        Submitit("lsf")
    for parameters in ({"partitoin": "gpu"}, {"gpus_per_node": "many"}):
        with pytest.raises(ValueError, match=str(parameters)[1:-1]):
            sweep(
                ["test_vit"], output=tmp_path / "rows.jsonl", launcher=Submitit("slurm", parameters)
            )
    assert not (cluster / "submitted").exists()
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ValueError, match="srun"):
        sweep(["test_vit"], output=tmp_path / "rows.jsonl", launcher=Submitit())
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ImportError, match=r"pip install 'efficient-vits\[slurm\]'"):
        sweep(["test_vit"], output=tmp_path / "rows.jsonl", launcher=Submitit())
