"""Training under Slurm, through submitit: submitted, requeued, and taken up where it was."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from efficient_vits.efficiency.slurm import submitit_executor
from efficient_vits.training.checkpoint import refuse_other_run

LOGS = "slurm"  # folder in the run's
_MINUTES = 60


@dataclasses.dataclass(frozen=True)
class ClusterRun:
    """What each process of the job does. submitit pickles it.

    When Slurm preempts the job or its time ends, submitit asks `checkpoint` what to queue instead:
    the same run, which goes on from its last checkpoint.

    Attributes:
        carry_out: Trains in a process whose environment is torchrun's; takes `resume`.
        resume: Go on from the last checkpoint.
    """

    carry_out: Callable[..., Any]
    resume: bool = False

    def __call__(self) -> Any:
        from submitit.helpers import TorchDistributedEnvironment

        # Each process sees all GPUs of its machine, as under torchrun.
        job = TorchDistributedEnvironment()
        job.export(set_cuda_visible_devices=False, overwrite=True)
        if job.world_size == job.local_world_size:
            # One machine: its processes meet even where its name cannot be resolved. torch tries
            # for half an hour before it says so.
            os.environ["MASTER_ADDR"] = "127.0.0.1"
        return self.carry_out(resume=self.resume)

    def checkpoint(self) -> Any:
        """The submission that takes the place of this one."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(dataclasses.replace(self, resume=True))


def submit(
    carry_out: Callable[..., Any],
    output: Path,
    *,
    resume: bool,
    parameters: Mapping[str, Any],
    cluster: str = "slurm",
) -> Any:
    """Submits a training run as one job.

    Args:
        carry_out: Trains; takes `resume`. submitit pickles it.
        output: The run's folder, which all machines see; logs go to its folder ``slurm``.
        resume: Go on from the last checkpoint from the beginning.
        parameters: What Slurm is asked for, as `efficiency.Submitit` names it: ``nodes`` machines
            with ``tasks_per_node`` training processes each, ``timeout_min`` (an hour by default).
        cluster: "slurm", or "local" for processes of this machine.

    Returns:
        submitit's job.

    Raises:
        FileExistsError: `output` has a run, and `resume` is not set.
        ImportError: submitit is not installed.
        ValueError: Parameters that submitit doesn't know, or there is no Slurm here.
    """
    refuse_other_run(output, resume=resume)
    executor = submitit_executor(
        output / LOGS, cluster, {"timeout_min": _MINUTES, **parameters}, name="efficient-vits-train"
    )
    return executor.submit(ClusterRun(carry_out, resume))
