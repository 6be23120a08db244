"""Calls a function in a Python process of its own, and brings its result or its error back."""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm.layers
import torch
from torch import nn

from efficient_vits.efficiency.batch_search import is_out_of_memory

_COMMAND = (
    "import sys; from efficient_vits.efficiency import fresh_process as f; f.answer(sys.argv[1])"
)


def call_in_fresh_process(
    function: Callable[..., Any], model: nn.Module | str, arguments: Mapping[str, Any]
) -> Any:
    """`function(model, **arguments)` in a process that has imported what it needs and no more.

    The process has this one's search path, number of threads, precision of matrix products, default
    dtype, and switch of fused attention. It does not outlive the call.

    Args:
        function: of a module, by whose name the process finds it; its result can be pickled.
        model: a name, or a module, which travels through a file.
        arguments: values that can be pickled.

    Raises:
        ValueError: the model cannot be pickled here, or not be found by the process.
        MemoryError: memory ran out there, be it that an allocation failed or that the process was
            killed.
        RuntimeError: the process ended otherwise without an answer.
        Exception: what the function raised there, with its traceback as the cause.
    """
    with tempfile.TemporaryDirectory(prefix="efficient-vits-") as folder:
        _write_question(Path(folder), function, model, arguments)
        code, said = _run(folder)
        answer = Path(folder, "answer")
        if not answer.exists():
            raise _untimely_end(code, said)
        kind, value, trace = pickle.loads(answer.read_bytes())
    if kind == "error":
        raise value from RuntimeError(f"in the process of its own:\n{trace}")
    return value


def answer(folder: str) -> None:
    """What the process does: reads the question, writes the answer."""
    result: tuple[str, Any, str]
    try:
        question = torch.load(Path(folder, "question"), weights_only=False)
        _restore(question["settings"])
        model = _read_model(Path(folder, "model"))
        result = ("value", question["function"](model, **question["arguments"]), "")
    except Exception as error:
        if is_out_of_memory(error) and not isinstance(error, torch.OutOfMemoryError):
            first = str(error).partition("\n")[0]
            error = MemoryError(f"memory ran out in the process of its own: {first}")
        result = ("error", _picklable(error), traceback.format_exc())
    part = Path(folder, "part")
    part.write_bytes(pickle.dumps(result))
    part.rename(Path(folder, "answer"))  # there is either a whole answer or none


def _write_question(
    folder: Path, function: Callable[..., Any], model: nn.Module | str, arguments: Mapping[str, Any]
) -> None:
    question = {"settings": _settings(), "function": function, "arguments": dict(arguments)}
    torch.save(question, folder / "question")
    try:
        torch.save(model, folder / "model")
    except (pickle.PicklingError, AttributeError, TypeError, RuntimeError) as error:
        raise ValueError(_advice(type(model).__name__, f"cannot be pickled: {error}")) from error


def _read_model(path: Path) -> nn.Module | str:
    try:
        model: nn.Module | str = torch.load(path, weights_only=False)
    except (AttributeError, ImportError, pickle.UnpicklingError) as error:
        # A class of __main__, of a notebook for instance, is not there in another process.
        raise ValueError(_advice("the model", f"cannot be unpickled there: {error}")) from error
    return model


def _advice(what: str, fault: str) -> str:
    return (
        f"a process of its own needs a model that can be pickled, with classes that can be "
        f"imported, and {what} {fault}; pass the name of a model of timm instead, or "
        f"fresh_process=False"
    )


def _settings() -> dict[str, Any]:
    return {
        "threads": torch.get_num_threads(),
        "precision": torch.get_float32_matmul_precision(),
        "dtype": torch.get_default_dtype(),
        "fused_attention": timm.layers.use_fused_attn(),
    }


def _restore(settings: Mapping[str, Any]) -> None:
    torch.set_num_threads(settings["threads"])
    torch.set_float32_matmul_precision(settings["precision"])
    torch.set_default_dtype(settings["dtype"])
    timm.layers.set_fused_attn(settings["fused_attention"])


def _run(folder: str) -> tuple[int, str]:
    """Exit status of the process, and the end of what it said on stderr."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        # Or the profiler reports each start and stop on stderr.
        "KINETO_LOG_LEVEL": os.environ.get("KINETO_LOG_LEVEL", "6"),
    }
    process = subprocess.Popen(
        [sys.executable, "-c", _COMMAND, folder],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    try:
        _, said = process.communicate()
    except BaseException:  # Ctrl-C among them: nobody waits for the answer any more
        process.kill()
        process.communicate()
        raise
    return process.returncode, said[-2000:].strip()


def _untimely_end(code: int, said: str) -> Exception:
    if code == -signal.SIGKILL:
        return MemoryError(
            "the process of its own was killed (SIGKILL), as systems do where memory runs out"
        )
    if "MemoryError" in said or is_out_of_memory(RuntimeError(said)):
        return MemoryError(f"memory ran out in the process of its own: {said[-300:]}")
    how = f"exit status {code}"
    if code < 0:
        with contextlib.suppress(ValueError):
            how = signal.Signals(-code).name
    return RuntimeError(f"the process of its own ended without an answer ({how}): {said}")


def _picklable(error: Exception) -> Exception:
    """The error, or one that says the same where it would not survive the way back."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
