"""Work on more machines than one, through submitit; sweeps as an array of jobs of Slurm."""

import functools
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from efficient_vits.efficiency.jobs import Job
from efficient_vits.efficiency.journal import Row, part_path, read_parts, write_part
from efficient_vits.efficiency.launchers import OnStep, Rows, failure, run_here

_START_SECONDS = 300  # for a member of the array to start, beside the timeout of its job
_DEFAULT_MINUTES = 60  # where there is no timeout
# A file that another machine wrote may be seen only when the network's file system asks again.
_GRACE_SECONDS = {"slurm": 60.0, "local": 1.0}
_POLL_SECONDS = {"slurm": 2.0, "local": 0.1}


@dataclass(frozen=True)
class Submitit:
    """Slurm, or submitit's own stand-in for it on this machine.

    Each job is a member of one job array, and measures in a process of its own there. Rows come
    back as files in a folder beside the sweep's file, which all machines must see, so that none is
    lost when the sweep that submitted them is gone. The next sweep with the same file takes them.

    Attributes:
        cluster: "slurm", or "local" for processes of this machine, one after another.
        parameters: what Slurm is asked for, as submitit names it: ``partition``, ``time`` (minutes;
            by default the timeout and 5 more), ``gpus_per_node``, ``cpus_per_task``, ``mem``,
            ``account``, ``array_parallelism``, ``setup``, ``additional_parameters``, ...

    Raises:
        ValueError: an unknown cluster.
    """

    cluster: str = "slurm"
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.cluster not in _GRACE_SECONDS:
            raise ValueError(f"cluster must be 'slurm' or 'local', got {self.cluster!r}")

    def run(
        self, jobs: Sequence[Job], *, parts: Path, timeout: float | None, on_step: OnStep
    ) -> Rows:
        """See `Launcher.run`.

        Raises:
            ImportError: submitit is not installed.
            ValueError: parameters that submitit does not know, or there is no Slurm here.
        """
        minutes = (
            _DEFAULT_MINUTES if timeout is None else math.ceil((timeout + _START_SECONDS) / 60)
        )
        executor = submitit_executor(
            parts / "logs",
            self.cluster,
            {"timeout_min": minutes, **self.parameters},
            name="efficient-vits-sweep",
        )
        # On one machine, measurements at the same time would disturb each other.
        arrays = [list(jobs)] if self.cluster == "slurm" else [[job] for job in jobs]
        return self._rows(executor, arrays, parts, timeout, on_step)

    def _rows(
        self,
        executor: Any,
        arrays: Sequence[Sequence[Job]],
        parts: Path,
        timeout: float | None,
        on_step: OnStep,
    ) -> Rows:
        member = functools.partial(measure_member, parts=parts, timeout=timeout, path=sys.path)
        for jobs in arrays:
            submitted = executor.map_array(member, [job.to_dict() for job in jobs])
            waiting = dict(zip((job.key for job in jobs), submitted, strict=True))
            by_key = {job.key: job for job in jobs}
            ended: dict[str, float] = {}
            for job in jobs:
                on_step(job, f"submitted as {waiting[job.key].job_id}")
            while waiting:
                for path, row in read_parts(parts):
                    task = waiting.pop(row["key"], None)
                    if task is None:
                        continue
                    yield row
                    # The row is in the sweep's file by now: see Launcher.run.
                    path.unlink()
                    while self.cluster == "local" and not task.done():
                        time.sleep(_POLL_SECONDS["local"])
                for key, task in [*waiting.items()]:
                    if not task.done() or part_path(parts, key).exists():
                        continue
                    since = ended.setdefault(key, time.monotonic())
                    if time.monotonic() > since + _GRACE_SECONDS[self.cluster]:
                        del waiting[key]
                        yield _lost(by_key[key], task, self.cluster)
                time.sleep(_POLL_SECONDS[self.cluster] if waiting else 0)


def submitit_executor(
    folder: Path, cluster: str, parameters: Mapping[str, Any], *, name: str
) -> Any:
    """What submits jobs.

    Args:
        folder: Of logs and of what is handed over; all machines must see it.
        cluster: "slurm", or "local" for processes of this machine.
        parameters: As `Submitit.parameters`.
        name: Of the jobs.

    Raises:
        ImportError: submitit is not installed.
        ValueError: parameters that submitit does not know, or there is no Slurm here.
    """
    try:
        import submitit
    except ImportError as error:
        raise ImportError(
            "jobs under Slurm need submitit: pip install 'efficient-vits[slurm]'"
        ) from error
    try:
        executor = submitit.AutoExecutor(folder, cluster=cluster)
        shared = set(submitit.AutoExecutor._typed_parameters())
        named = {
            name if name in shared else f"slurm_{name}": value for name, value in parameters.items()
        }
        executor.update_parameters(**{"name": name, **named})
    except (NameError, AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"submitit does not take this: {error}; parameters={dict(parameters)!r}"
        ) from error
    return executor


def measure_member(
    fields: Mapping[str, Any], *, parts: Path, timeout: float | None, path: Sequence[str]
) -> None:
    """What a member of the array does: measures its job in a fresh process, and leaves the row."""
    job = Job.from_dict(fields)
    for row in run_here(
        [job], slots=[{}], timeout=timeout, on_step=lambda job, step: None, path=path
    ):
        write_part(parts, row)


def _lost(job: Job, task: Any, cluster: str) -> Row:
    """The row of a member that ended without one: the machine failed, or Slurm ended it."""
    # The log tells; a member that was never started has none.
    output = task.stderr() or ""
    error = f"job {task.job_id} of {cluster} ended as {task.state} without a result"
    return failure(job, "launcher", error, output=output)
