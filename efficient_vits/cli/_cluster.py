"""Where `train` and `finetune` run: here, or as a job of Slurm."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from efficient_vits.cli._console import print_json
from efficient_vits.cli._errors import UserError, mistakes, one_line
from efficient_vits.cli._pairs import parse_pairs

_CLUSTERS = {"slurm": "slurm", "local-submitit": "local"}

Launcher = Annotated[str, typer.Option(help=f"One of here, {', '.join(_CLUSTERS)}.")]
Nodes = Annotated[int | None, typer.Option(metavar="NUMBER", help="Machines of the job.")]
GpusPerNode = Annotated[
    int | None, typer.Option(metavar="NUMBER", help="GPUs, and processes, on each of them.")
]
Partition = Annotated[str | None, typer.Option(metavar="NAME", help="Slurm's.")]
Time = Annotated[
    int | None, typer.Option("--time", metavar="MINUTES", help="After which the job is requeued.")
]
Slurm = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=VALUE", help="What else Slurm is asked for: account=mine, mem=64GB."),
]


@dataclass(frozen=True)
class Job:
    """What was asked for.

    Raises:
        UserError: An unknown launcher, or wishes for a job where there is none.
    """

    launcher: str
    nodes: int | None
    gpus_per_node: int | None
    partition: str | None
    time: int | None
    slurm: list[str] | None
    cpu: bool

    def __post_init__(self) -> None:
        if self.launcher != "here" and self.launcher not in _CLUSTERS:
            raise UserError(
                f"--launcher {self.launcher!r} is none; accepted are here, {', '.join(_CLUSTERS)}"
            )
        wishes = {
            "--nodes": self.nodes,
            "--gpus-per-node": self.gpus_per_node,
            "--partition": self.partition,
            "--time": self.time,
            "--slurm": self.slurm,
        }
        for option, value in wishes.items():
            if self.launcher == "here" and value:
                raise UserError(f"{option} needs --launcher slurm")
            if isinstance(value, int) and value < 1:
                raise UserError(f"{option} is at least 1, got {value}")

    def parameters(self) -> dict[str, Any]:
        """As submitit names them."""
        processes = self.gpus_per_node or 1
        named = {
            "nodes": self.nodes or 1,
            "tasks_per_node": processes,
            "gpus_per_node": None if self.cpu else processes,
            "partition": self.partition,
            "timeout_min": self.time,
        }
        chosen = {name: value for name, value in named.items() if value is not None}
        return {**chosen, **parse_pairs(self.slurm or [], option="--slurm")}

    def run(
        self, carry_out: Callable[..., dict[str, Any]], output: Path, *, resume: bool, as_json: bool
    ) -> dict[str, Any] | None:
        """Trains and gives the result; None if a job was submitted, which is said on stdout."""
        if self.launcher == "here":
            return carry_out(resume=resume)
        from efficient_vits.training.cluster import LOGS, submit

        with mistakes(ImportError, ValueError):
            job = submit(
                carry_out,
                output.resolve(),
                resume=resume,
                parameters=self.parameters(),
                cluster=_CLUSTERS[self.launcher],
            )
        if self.launcher == "local-submitit":
            return _wait(job, output, output / LOGS)
        said = {"job": str(job.job_id), "output": str(output), "logs": str(output / LOGS)}
        if as_json:
            print_json(said)
        else:
            print(
                f"submitted as job {job.job_id}; logs are in {said['logs']}, "
                f"the result will be {output / 'result.json'}"
            )
        return None


def _wait(job: Any, output: Path, logs: Path) -> dict[str, Any]:
    job.wait()
    fault = job.exception()
    if fault is not None:
        last = (job.stderr() or str(fault)).strip().splitlines()[-1]
        raise UserError(f"job {job.job_id} failed: {one_line(last)}; see {logs}")
    result: dict[str, Any] = json.loads((output / "result.json").read_text(encoding="utf-8"))
    return result
