"""Jobs through submitit: for real on this machine, and against a stand-in for Slurm."""

import os
import signal

import pytest

from efficient_vits.training import submit


def weights(run):
    return {path.name: path.read_bytes() for path in (run / "last").glob("*.safetensors")}


def test_a_preempted_job_goes_on_from_its_last_checkpoint(tiny, recipe, tmp_path, monkeypatch):
    from efficient_vits.training import Options, load_data, train

    # As large as needed for two updates an epoch.
    recipe = recipe.with_changes(img_size=16, batch_size=448)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def job(folder, *, preempted):
        def carry_out(*, resume):
            updates = []

            def preempt(update):
                updates.append((update.epoch, update.index))
                if preempted and not resume and len(updates) == 4:
                    os.kill(os.getpid(), signal.SIGUSR2)  # what Slurm's warning is to submitit

            how = {"options": Options(save_every=1), "cpu": True, "resume": resume}
            train(tiny, load_data("digits"), recipe, folder, on_update=preempt, **how)
            return updates

        minutes = {"timeout_min": 5}
        return submit(carry_out, folder, resume=False, parameters=minutes, cluster="local")

    whole = job(tmp_path / "whole", preempted=False)
    updates = whole.result()
    preempted = job(tmp_path / "preempted", preempted=True)
    # The fourth update was not saved when the job ended; the job that took its place did it again.
    assert preempted.result() == updates[3:]
    assert weights(tmp_path / "preempted") == weights(tmp_path / "whole")


def test_the_processes_of_one_machine_meet_without_its_name(tmp_path):
    def address(*, resume):
        return os.environ["MASTER_ADDR"], os.environ["WORLD_SIZE"]

    parameters = {"timeout_min": 1, "tasks_per_node": 2}
    job = submit(address, tmp_path, resume=False, parameters=parameters, cluster="local")
    assert job.results() == [("127.0.0.1", "2")] * 2


@pytest.fixture
def submitted(tmp_path, monkeypatch):
    """Commands that answer as Slurm would; the file has what was submitted."""
    folder = tmp_path / "bin"
    folder.mkdir()
    scripts = {
        "srun": "",
        "sbatch": f'cat "$1" > "{tmp_path}/submitted"; echo Submitted batch job 4711',
    }
    for name, line in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return tmp_path / "submitted"


def test_what_slurm_is_asked_for(submitted, tmp_path):
    parameters = {"nodes": 2, "tasks_per_node": 4, "gpus_per_node": 4, "partition": "gpu"}
    job = submit(print, tmp_path / "run", resume=False, parameters=parameters)
    assert job.job_id == "4711"
    text = submitted.read_text()
    for flag in ("--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4", "--partition=gpu"):
        assert f"#SBATCH {flag}\n" in text
    assert "#SBATCH --time=60\n" in text
    assert "--job-name=efficient-vits-train" in text
    assert list((tmp_path / "run" / "slurm").iterdir())


def test_what_is_not_submitted(submitted, tmp_path):
    (tmp_path / "run" / "last").mkdir(parents=True)
    with pytest.raises(FileExistsError, match="resume it, or choose another folder"):
        submit(print, tmp_path / "run", resume=False, parameters={})
    with pytest.raises(ValueError, match="'partitoin': 'gpu'"):
        submit(print, tmp_path / "other", resume=False, parameters={"partitoin": "gpu"})
    assert not submitted.exists()
