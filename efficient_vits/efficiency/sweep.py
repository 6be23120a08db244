"""Measures many models, one fresh process for each, into a file that survives being killed."""

import contextlib
import importlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efficient_vits.efficiency.jobs import ImgSize, Job, make_jobs
from efficient_vits.efficiency.journal import Journal, Row, read_parts
from efficient_vits.efficiency.launchers import Launcher, Local


@dataclass(frozen=True)
class SweepProgress:
    """How far a sweep is.

    Attributes:
        name: the model that something happens to.
        step: what happens: "starting", "building", "flops", "memory", "throughput", ..., and
            "measured" or "failed" when its row is in the file.
        done: jobs with a row, those of earlier runs among them.
        failed: those of them that failed.
        total: all jobs.
        seconds_left: how long the others will take at the pace of this run; None before the first.
    """

    name: str
    step: str
    done: int
    failed: int
    total: int
    seconds_left: float | None


def sweep(
    names: Sequence[str],
    *,
    output: str | os.PathLike[str],
    img_sizes: Sequence[ImgSize | None] = (),
    batch_sizes: Sequence[int | None] = (),
    model_arguments: Mapping[str, Any] | None = None,
    transform: str | None = None,
    imports: Sequence[str] = (),
    seed: int = 0,
    timeout: float | None = 3600.0,
    retry_failed: bool = False,
    launcher: Launcher | None = None,
    on_progress: Callable[[SweepProgress], object] | None = None,
    **options: Any,
) -> list[Row]:
    """Measures every combination of models, image sizes and batch sizes, each in a fresh process.

    Each result is appended to `output` as one line of JSON: the fields of `Measurement.to_dict()`;
    ``job``, all that was asked for; ``key``, which names the job; ``provenance``, with the commits
    of `imports`, the state of the machine before, and the seconds that the job took. A job that
    fails has a row too, with ``error`` and with ``reason``:
    "exception", "out of memory", "timeout", "killed" (by a signal), "exit" (the process ended
    without a result) or "launcher". A sweep that is killed, at any point and by any means, goes on
    where it was when it is called again: jobs that have a row are not run again.

    Args:
        names: models for `timm.create_model`, or patterns of timm's names such as "vit_tiny_*".
        output: the file of rows. One sweep at a time writes it; further sweeps may add to it.
        img_sizes: pixels, 224 or (height, width); by default each model's own.
        batch_sizes: images in a batch; by default what `measure` does without one.
        model_arguments: further arguments of `timm.create_model`, for all models.
        transform: a function that each model goes through first, as ``"module:function"``, such as
            "efficient_vits:fuse".
        imports: modules that register models of one's own; imported here and in each process.
        seed: of torch's random numbers, before a model is built.
        timeout: seconds for each job, from the start of its process to its row.
        retry_failed: whether jobs whose row is a failure run again. Their new row is appended and
            counts from then on.
        launcher: where the jobs run; by default `Local()`, one after another on this machine.
        on_progress: called when something happens.
        **options: arguments of `measure` that JSON can hold, such as ``device="cpu"`` or
            ``throughput=False``.

    Returns:
        The rows of all jobs of this call, of earlier runs too, in the order of the product.

    Raises:
        TypeError, ValueError: an argument is not of the kind above, timm knows no such model, or
            `measure` no such option; nothing is measured then.
        JournalError: a ValueError: `output` is no sweep's file, or another sweep is writing it.
        OSError: the file cannot be written; its rows are whole all the same.
    """
    if timeout is not None and not timeout > 0:
        raise ValueError(f"timeout must be a positive number of seconds, got {timeout!r}")
    for module in imports:
        importlib.import_module(module)
    jobs = make_jobs(
        names,
        img_sizes=img_sizes,
        batch_sizes=batch_sizes,
        model_arguments=model_arguments or {},
        options=options,
        transform=transform,
        seed=seed,
        imports=imports,
    )
    chosen = Local() if launcher is None else launcher
    parts = Path(f"{os.fspath(output)}.parts")
    with Journal(output) as journal:
        _gather(journal, parts)
        pending = [job for job in jobs if _is_open(journal.rows.get(job.key), retry_failed)]
        if pending:
            report = _Reporter(journal, jobs, pending, on_progress)
            rows = chosen.run(pending, parts=parts, timeout=timeout, on_step=report.step)
            # Closed in any case, so that no process outlives an interrupted sweep.
            with contextlib.closing(rows):
                for row in rows:
                    journal.append(row)
                    report.finished(row)
        return [journal.rows[job.key] for job in jobs]


def _is_open(row: Row | None, retry_failed: bool) -> bool:
    return row is None or (retry_failed and "error" in row)


def _gather(journal: Journal, parts: Path) -> None:
    """Takes rows that arrived when nobody was there to take them."""
    for path, row in read_parts(parts):
        # A file that is left although its row was taken; or a second result of one job.
        if _is_open(journal.rows.get(row["key"]), retry_failed="error" not in row):
            journal.append(row)
        path.unlink()


class _Reporter:
    """Tells how far a sweep is."""

    def __init__(
        self,
        journal: Journal,
        jobs: Sequence[Job],
        pending: Sequence[Job],
        on_progress: Callable[[SweepProgress], object] | None,
    ) -> None:
        self._rows = journal.rows
        self._keys = [job.key for job in jobs]
        self._open = {job.key for job in pending}
        self._began = self._latest = time.monotonic()
        self._finished = 0
        self._on_progress = on_progress

    def step(self, job: Job, step: str) -> None:
        self._report(job.name, step)

    def finished(self, row: Row) -> None:
        self._finished += 1
        self._latest = time.monotonic()
        self._open.discard(row["key"])
        self._report(row["name"], "failed" if "error" in row else "measured")

    def _report(self, name: str, step: str) -> None:
        if self._on_progress is None:
            return
        done = [self._rows[key] for key in self._keys if key not in self._open]
        left = None
        if self._finished:
            pace = (self._latest - self._began) / self._finished
            left = max(0.0, pace * len(self._open) - (time.monotonic() - self._latest))
        failed = sum("error" in row for row in done)
        self._on_progress(SweepProgress(name, step, len(done), failed, len(self._keys), left))
