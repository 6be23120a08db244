"""Where the jobs of a sweep run: in processes of this machine, one for each job."""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from efficient_vits.efficiency.jobs import Job
from efficient_vits.efficiency.journal import Row

OnStep = Callable[[Job, str], object]
Rows = Generator[Row, None, None]

_POLL_SECONDS = 0.2
_OUTPUT_CHARACTERS = 2000  # of what a failed worker printed, the end is kept
_DYING_SECONDS = 5.0  # from the end of what a worker says to the end of its process
# The worker runs the code that this process runs, wherever it was imported from.
_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from efficient_vits.efficiency._worker import main; main()"
)


class Launcher(Protocol):
    """Runs jobs somewhere and gives a row for each, in any order."""

    def run(
        self, jobs: Sequence[Job], *, parts: Path, timeout: float | None, on_step: OnStep
    ) -> Rows:
        """Rows as they come. Each is in the sweep's file when the next is asked for.

        Args:
            jobs: those to run.
            parts: a folder of the sweep, for rows that arrive while nobody asks, and for logs.
            timeout: seconds for each job, None for as long as it takes.
            on_step: called with a job and what is done for it now.
        """
        ...


@dataclass(frozen=True)
class Local:
    """Processes of this machine.

    Attributes:
        workers: jobs that run at the same time. They share processor and memory, and their figures
            show it: more than one is for counting FLOPs and parameters.
        gpus: GPUs that are measured on at the same time, one job on each; numbers as torch has
            them here, or "all" of them. None leaves the jobs what this process sees.

    Raises:
        ValueError: `workers` is no positive number or comes with `gpus`; a GPU is not there.
    """

    workers: int = 1
    gpus: Sequence[int] | Literal["all"] | None = None

    def __post_init__(self) -> None:
        self.slots()

    def run(
        self, jobs: Sequence[Job], *, parts: Path, timeout: float | None, on_step: OnStep
    ) -> Rows:
        """See `Launcher.run`; `parts` is not used."""
        return run_here(jobs, slots=self.slots(), timeout=timeout, on_step=on_step)

    def slots(self) -> list[dict[str, str]]:
        """For each job that runs at the same time, what is particular in its environment."""
        if not isinstance(self.workers, int) or self.workers < 1:
            raise ValueError(f"workers must be a positive integer, got {self.workers!r}")
        if self.gpus is None:
            return [{} for _ in range(self.workers)]
        if self.workers != 1:
            raise ValueError(f"gpus bring a worker each; workers={self.workers} does not go along")
        there = range(torch.cuda.device_count())
        wanted = list(there) if self.gpus == "all" else list(self.gpus)
        if not wanted or any(gpu not in there for gpu in wanted):
            raise ValueError(f"gpus={self.gpus!r} are not all here; torch sees {list(there)}")
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(gpu) for gpu in there]
        return [{"CUDA_VISIBLE_DEVICES": names[gpu]} for gpu in dict.fromkeys(wanted)]


def run_here(
    jobs: Sequence[Job],
    *,
    slots: Sequence[Mapping[str, str]],
    timeout: float | None,
    on_step: OnStep,
    path: Sequence[str] | None = None,
) -> Rows:
    """Runs each job in a fresh process, as many at a time as there are slots.

    Args:
        jobs: those to run.
        slots: environment variables of the processes that run at the same time.
        timeout: seconds for each job, its imports among them.
        on_step: called with a job and what its process does now.
        path: where the processes import from; by default as this one does.
    """
    pending, idle = deque(jobs), deque(slots)
    path = list(sys.path if path is None else path)
    running: list[_Worker] = []
    selector = selectors.DefaultSelector()
    try:
        while pending or running:
            while pending and idle:
                worker = _Worker(pending.popleft(), idle.popleft(), timeout, path, on_step)
                running.append(worker)
                selector.register(worker.pipe, selectors.EVENT_READ, worker)
            for ready, _ in selector.select(_POLL_SECONDS):
                if not ready.data.read():
                    selector.unregister(ready.fd)
            for worker in [*running]:
                row = worker.row()
                if row is None:
                    continue
                if worker.pipe in selector.get_map():
                    selector.unregister(worker.pipe)
                running.remove(worker)
                worker.close()
                idle.append(worker.slot)
                yield row
    finally:
        selector.close()
        for worker in running:
            worker.close()


def failure(job: Job, reason: str, error: str, *, output: str = "", **facts: Any) -> Row:
    """The row of a job that could not be measured.

    Args:
        job: the one.
        reason: "exception", "out of memory", "timeout", "killed", "exit" or "launcher".
        error: what happened, in one line.
        output: the end of what its process printed.
        facts: fields that are known all the same.
    """
    said = {"output": output[-_OUTPUT_CHARACTERS:]} if output.strip() else {}
    return {
        "key": job.key,
        "name": job.name,
        "error": error,
        "reason": reason,
        **said,
        "job": job.to_dict(),
        **facts,
    }


class _Worker:
    """The process of one job."""

    def __init__(
        self,
        job: Job,
        slot: Mapping[str, str],
        timeout: float | None,
        path: Sequence[str],
        on_step: OnStep,
    ) -> None:
        self.job = job
        self.slot = slot
        self._on_step = on_step
        self._timeout = timeout
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._silent_since: float | None = None
        self._buffer = b""
        self._answer: dict[str, Any] | None = None
        self._facts: dict[str, Any] = {}
        self._step = "starting"
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed by close())
        self.pipe, answers = os.pipe()
        command = [sys.executable, "-c", _BOOT, str(answers), json.dumps(path)]
        # The profiler behind the memory figure would report each start and stop.
        quiet = {"KINETO_LOG_LEVEL": "6", **os.environ}
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=self._log,
                stderr=self._log,
                env={**quiet, **slot},
                pass_fds=[answers],
                # A group of its own, so that all of it can be ended.
                start_new_session=True,
            )
        finally:
            os.close(answers)
        on_step(job, self._step)
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended already; row() says how
            self._process.stdin.write((json.dumps(job.to_dict()) + "\n").encode())
            self._process.stdin.flush()

    def read(self) -> bool:
        """Takes what the process says; False when it will say no more."""
        data = os.read(self.pipe, 1 << 16)
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "step" in message:
                self._step = message["step"]
                self._on_step(self.job, self._step)
            elif "facts" in message:
                self._facts = message["facts"]
            else:
                self._answer = message
        if not data:
            self._silent_since = time.monotonic()
        return bool(data)

    def row(self) -> Row | None:
        """The row, or that of the failure; None while the process is at work."""
        if self._answer is None and self._process.poll() is not None:
            # What it said last may not have been read yet.
            while self._silent_since is None and self._has_more():
                self.read()
        if self._answer is not None:
            if "row" in self._answer:
                row: Row = self._answer["row"]
                return row
            return failure(self.job, **self._answer, **self._facts)
        now = time.monotonic()
        if self._process.poll() is not None:
            return self._ended(self._process.returncode)
        if self._deadline is not None and now > self._deadline:
            return self._failure("timeout", f"no result in {self._timeout:g} s, at {self._step!r}")
        if self._silent_since is not None and now > self._silent_since + _DYING_SECONDS:
            return self._failure("exit", f"ended without a result, at {self._step!r}")
        return None

    def close(self) -> None:
        """Ends the process and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        os.close(self.pipe)
        self._log.close()

    def _has_more(self) -> bool:
        with selectors.DefaultSelector() as selector:
            selector.register(self.pipe, selectors.EVENT_READ)
            return bool(selector.select(0))

    def _ended(self, status: int) -> Row:
        if status < 0:
            name = signal.Signals(-status).name
            hint = ", as the system does where memory runs out" if name == "SIGKILL" else ""
            return self._failure("killed", f"killed by {name}{hint}, at {self._step!r}")
        return self._failure(
            "exit", f"ended with status {status} without a result, at {self._step!r}"
        )

    def _failure(self, reason: str, error: str) -> Row:
        end = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, end - 4 * _OUTPUT_CHARACTERS))
        output = self._log.read().decode(errors="replace")
        return failure(self.job, reason, error, output=output, **self._facts)
