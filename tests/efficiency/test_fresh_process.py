"""Calls in a process of its own: results, errors and sudden ends come back."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from efficient_vits.efficiency import measure_memory
from efficient_vits.efficiency.fresh_process import call_in_fresh_process


def process_id(model: Any) -> int:
    return os.getpid()


def wait(model: Any, path: str) -> None:
    part = Path(path).with_suffix(".part")
    part.write_text(str(os.getpid()))
    part.rename(path)
    time.sleep(600)


def misbehave(model: str, how: str) -> Any:
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "abort":
        os._exit(3)
    if how == "bad_alloc":
        os.write(2, b"terminate called after throwing an instance of 'std::bad_alloc'\n")
        os._exit(134)
    if how == "allocator":
        raise RuntimeError(
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
        )
    if how == "card":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    raise KeyError("lost")


@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [
        ("kill", MemoryError, "was killed"),
        ("abort", RuntimeError, "without an answer.*exit status 3"),
        ("key", KeyError, "lost"),
        ("bad_alloc", MemoryError, "memory ran out.*bad_alloc"),
        ("allocator", MemoryError, "memory ran out.*DefaultCPUAllocator"),
        ("card", torch.OutOfMemoryError, "^CUDA out of memory"),
    ],
)
def test_how_it_ends_is_said(how: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        call_in_fresh_process(misbehave, "name", {"how": how})


def test_a_model_that_cannot_travel() -> None:
    class Local(nn.Module):
        pass

    with pytest.raises(ValueError, match=r"Local cannot be pickled.*fresh_process=False"):
        call_in_fresh_process(process_id, Local(), {})


def test_what_this_process_holds_is_not_in_the_figure() -> None:
    model = timm.create_model("vit_ti16", img_size=64, depth=1, num_classes=10)
    held = torch.ones(2**25)  # 128 MiB
    here = measure_memory(model, (3, 64, 64), batch_size=2)
    own = measure_memory(model, (3, 64, 64), batch_size=2, fresh_process=True)
    assert (here.fresh_process, own.fresh_process) == (False, True)
    assert own.peak_bytes == here.peak_bytes < held.nbytes
    assert sum(p.nbytes for p in model.parameters()) < own.peak_bytes


def test_an_interrupted_call_leaves_no_process(tmp_path: Path) -> None:
    answer = tmp_path / "process"

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    def press() -> None:
        # As soon as the process of its own is there and has said so.
        while not answer.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, interrupt)
    thread = threading.Thread(target=press)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            call_in_fresh_process(wait, "name", {"path": str(answer)})
    finally:
        thread.join()
        signal.signal(signal.SIGUSR1, before)
    with pytest.raises(ProcessLookupError):
        os.kill(int(answer.read_text()), 0)


def test_memory_that_really_runs_out(tmp_path: Path) -> None:
    script = tmp_path / "limited.py"
    script.write_text(
        textwrap.dedent(
            """
            import resource
            import torch
            from torch import nn
            from efficient_vits.efficiency import measure_memory

            model = nn.Linear(1024, 2**16, bias=False)  # 256 MiB of weights
            limit = 2**30
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
            try:
                measure_memory(model, (1024,), batch_size=8192, fresh_process=True)
            except MemoryError as error:
                print("MemoryError:", error)
            """
        )
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.stdout.startswith("MemoryError: memory ran out"), done.stdout + done.stderr[-2000:]
