"""Training as a job."""

import json

import pytest

SMALL = ("--data", "digits", "--cpu", "--workers", "0", "--set", "epochs=2", "--set", "img_size=16",
         "--set", "batch_size=448")  # fmt: skip
TINY = ("--arg", "depth=1", "--arg", "embed_dim=32", "--arg", "num_heads=2")


def test_a_job_of_two_processes(run, tmp_path):
    folder = tmp_path / "run"
    job = ("--launcher", "local-submitit", "--gpus-per-node", "2")
    status, out, err = run("train", "vit_ti16", *SMALL, *TINY, "-o", folder, *job)
    assert status == 0, err
    assert "vit_ti16: top-1" in out
    result = json.loads((folder / "result.json").read_text())
    assert result["training"]["batch"]["processes"] == 2
    assert len(list((folder / "slurm").glob("*.out"))) == 2


def test_a_job_of_slurm(run, run_json, tmp_path, monkeypatch):
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, line in {"srun": "", "sbatch": 'cp "$1" "$0.got"; echo batch job 47'}.items():
        (commands / name).write_text(f"#!/bin/sh\n{line}\n")
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(commands), prepend=":")
    asked = ("--launcher", "slurm", "--nodes", "2", "--gpus-per-node", "4", "--partition", "gpu",
             "--time", "90", "--slurm", "account=mine", "-o", tmp_path / "run")  # fmt: skip
    command = ("train", "vit_ti16", "--data", "digits", *asked)
    assert run_json(*command)["job"] == "47"
    text = (commands / "sbatch.got").read_text()
    for flag in ("nodes=2", "ntasks-per-node=4", "gpus-per-node=4", "partition=gpu", "time=90",
                 "account=mine"):  # fmt: skip
        assert f"#SBATCH --{flag}\n" in text
    status, out, _ = run(*command)
    assert status == 0
    assert "submitted as job 47" in out
    assert not (tmp_path / "run" / "last").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--launcher", "lsf"), "accepted are here, slurm, local-submitit"),
        (("--nodes", "2"), "--nodes needs --launcher slurm"),
        (("--launcher", "slurm", "--nodes", "0"), "--nodes is at least 1, got 0"),
        (("--launcher", "local-submitit", "--nodes", "2"), "only one node"),
        (("--launcher", "slurm", "--slurm", "account"), "no KEY=VALUE"),
    ],
)
def test_mistakes_are_one_line(options, said, refused, tmp_path):
    command = ("train", "vit_ti16", "--data", "digits", "-o", tmp_path / "run")
    assert said in refused(*command, *options)


def test_a_job_that_fails_says_why(refused, tmp_path):
    command = ("train", "vit_ti16", "--data", "nowhere", "-o", tmp_path / "run", "--cpu")
    assert "no data at 'nowhere'" in refused(*command, "--launcher", "local-submitit")
