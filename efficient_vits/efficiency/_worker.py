"""The process that measures one job of a sweep, and nothing else.

The job comes as a line of JSON on stdin. What is to be said goes, a line of JSON each, to a pipe
that nobody else knows: stdout and stderr belong to the model. Stdin stays open for as long as the
parent lives; when it closes, this process ends with all that it started, so that a killed sweep
leaves nothing behind that would disturb the next.
"""

import ctypes
import importlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import nn

from efficient_vits.efficiency.batch_search import is_out_of_memory
from efficient_vits.efficiency.commits import commit
from efficient_vits.efficiency.environment import environment
from efficient_vits.efficiency.jobs import Job
from efficient_vits.efficiency.measure import measure

_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux


def main() -> None:
    """Reads the job, measures it, and says how it went."""
    _end_with_parent()
    descriptor = int(sys.argv[1])
    os.set_inheritable(descriptor, False)
    with os.fdopen(descriptor, "w", encoding="utf-8") as answers:

        def say(**message: Any) -> None:
            answers.write(json.dumps(message) + "\n")
            answers.flush()

        job = Job.from_dict(json.loads(sys.stdin.readline()))
        threading.Thread(target=_watch_parent, daemon=True).start()
        try:
            say(row=_measured(job, say))
        except BaseException as error:  # SystemExit too: a model may end the interpreter
            text = "".join(traceback.format_exception(error))
            say(
                error=" ".join(f"{type(error).__name__}: {error}".split()),
                reason="out of memory" if is_out_of_memory(error) else "exception",
                output=text,
            )


def _measured(job: Job, say: Callable[..., None]) -> dict[str, Any]:
    began = time.monotonic()
    for module in job.imports:
        importlib.import_module(module)
    device = job.options.get("device") or ("cuda" if torch.cuda.is_available() else "cpu")
    origin: dict[str, Any] = {"commit": {module: commit(module) for module in job.imports}}
    # Said before anything can go wrong, so that the row of a failure has it too.
    facts = environment()
    say(facts={"environment": facts, "provenance": origin})
    say(step="building")
    torch.manual_seed(job.seed)
    model, options = _build(job)
    result = measure(
        model,
        **{**options, "device": device},
        transform=None if job.transform is None else _function(job.transform),
        on_step=lambda step: say(step=step),
    )
    origin = {
        **origin,
        "state_before": facts["state"],
        "seconds": round(time.monotonic() - began, 3),
    }
    return {
        "key": job.key,
        **result.to_dict(),
        "name": job.name,
        "job": job.to_dict(),
        "provenance": origin,
    }


def _build(job: Job) -> tuple[nn.Module, dict[str, Any]]:
    """The model, and the options of `measure` for it."""
    arguments, options = dict(job.model_arguments), dict(job.options)
    if job.img_size is not None:
        config = None if ":" in job.name else timm.get_pretrained_cfg(job.name)
        # A model that takes any size has no such argument.
        if config is not None and config.fixed_input_size:
            arguments["img_size"] = job.img_size
    model = timm.create_model(job.name, **arguments)
    if job.img_size is not None:
        options["input_size"] = (getattr(model, "in_chans", 3), *job.img_size)
    return model, options


def _function(name: str) -> Callable[[nn.Module], nn.Module]:
    module, _, attribute = name.partition(":")
    function: Callable[[nn.Module], nn.Module] = getattr(importlib.import_module(module), attribute)
    return function


def _end_with_parent() -> None:
    """On Linux the kernel ends this process with its parent, even in the midst of a computation."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)


def _watch_parent() -> None:
    """Elsewhere, and for the processes that this one started: stdin closes with the parent."""
    while os.read(0, 1):
        pass
    os.killpg(0, signal.SIGKILL)
