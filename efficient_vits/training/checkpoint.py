"""Checkpoints: folders of safetensors and JSON that are there whole or not at all.

A run's folder has them under ``checkpoints/``, named by the number of updates, and two links to
folders there, ``last`` and ``best``. Each has

    model.safetensors      the weights, under the model's own names: `load_weights` reads them
    ema.safetensors        their moving average, if the run keeps one
    training.safetensors   the tensors of the optimizer and the gradient scaler
    state.json             all else: recipe, position, history, lineage

Nothing is pickled.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

STATE, MODEL, EMA, TRAINING = (
    "state.json",
    "model.safetensors",
    "ema.safetensors",
    "training.safetensors",
)
_FOLDER = "checkpoints"


class CheckpointError(ValueError):
    """A checkpoint that is not there, is damaged, or belongs to another run."""


def save_checkpoint(
    run: Path,
    update: int,
    state: Mapping[str, Any],
    *,
    model: Mapping[str, Tensor],
    training: Any,
    ema: Mapping[str, Tensor] | None = None,
) -> Path:
    """Writes a checkpoint and makes it the last one.

    Whatever interrupts this, the folder under its name is complete or absent.

    Args:
        run: The run's folder.
        update: Updates done, the checkpoint's name.
        state: What JSON can write.
        model: State dict.
        training: Nested dictionaries and lists of numbers and tensors, such as an optimizer's
            state dict.
        ema: State dict of the moving average.

    Returns:
        The checkpoint's folder.
    """
    folder = run / _FOLDER / f"{update:08d}"
    draft = folder.with_suffix(".part")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    skeleton, tensors = split_tensors(training)
    files = {MODEL: model, TRAINING: tensors} | ({} if ema is None else {EMA: ema})
    for name, content in files.items():
        save_file(_separate(content), draft / name)
    hashes = {name: file_hash(draft / name) for name in files}
    text = json.dumps({**state, "update": update, "training": skeleton, "sha256": hashes})
    (draft / STATE).write_text(text, encoding="utf-8")
    for file in draft.iterdir():
        _sync(file)
    if folder.exists():  # of an attempt that went on from an earlier checkpoint
        shutil.rmtree(folder)
    draft.rename(folder)
    _sync(folder.parent)
    point(run, "last", folder)
    return folder


def load_state(folder: Path) -> dict[str, Any]:
    """``state.json`` of a checkpoint whose files are those that were written.

    Raises:
        CheckpointError: It is none, or a file is missing or has changed.
    """
    try:
        state: dict[str, Any] = json.loads((folder / STATE).read_text(encoding="utf-8"))
        expected = state["sha256"].items()
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{folder} is no checkpoint of a training run: {error}") from error
    for name, expected_hash in expected:
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} lacks {name}")
        if file_hash(folder / name) != expected_hash:
            raise CheckpointError(f"{folder / name} is damaged: its SHA-256 is not the one noted")
    return state


def load_training(folder: Path, state: Mapping[str, Any]) -> Any:
    """What was given to `save_checkpoint` as `training`."""
    return join_tensors(state["training"], load_file(folder / TRAINING))


def point(run: Path, name: str, folder: Path) -> None:
    """Makes the link `name` of the run lead to this checkpoint, at one stroke."""
    draft = run / f".{name}.part"
    draft.unlink(missing_ok=True)
    draft.symlink_to(folder.resolve().relative_to(run.resolve()))
    os.replace(draft, run / name)
    _sync(run)


def refuse_other_run(output: Path, *, resume: bool) -> bool:
    """Whether a folder has a run.

    Raises:
        FileExistsError: It has one that is not to be resumed.
    """
    found = (output / "last").exists()
    if found and not resume:
        raise FileExistsError(f"{output} has a run already: resume it, or choose another folder")
    return found


def differences(own: Mapping[str, Any], kept: Mapping[str, Any]) -> list[str]:
    """What differs between a run and one that was kept, in words; what only that has counts not.

    Args:
        own: Nested dictionaries that JSON can write.
        kept: Likewise, as read from a checkpoint.
    """
    mine, theirs = _flat(json.loads(json.dumps(own))), _flat(kept)
    return [
        f"{name} was {theirs.get(name)!r}, is {value!r}"
        for name, value in mine.items()
        if theirs.get(name) != value
    ]


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested dictionary with dotted names."""
    out: dict[str, Any] = {}
    for name, part in value.items():
        if isinstance(part, Mapping):
            out |= _flat(part, f"{prefix}{name}.")
        else:
            out[prefix + name] = part
    return out


def tidy(run: Path, *, keep_every: int | None) -> None:
    """Removes what an interruption left, and all checkpoints that nothing keeps.

    Kept are the last, the best, and those of every `keep_every`-th epoch.
    """
    linked = {(run / name).resolve() for name in ("last", "best") if (run / name).exists()}
    for folder in (run / _FOLDER).glob("*"):
        if folder.resolve() in linked:
            continue
        complete = re.fullmatch(r"\d{8}", folder.name) is not None
        if not (complete and keep_every and _is_kept(folder, keep_every)):
            shutil.rmtree(folder)


def _is_kept(folder: Path, keep_every: int) -> bool:
    state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    return state["batch"] == 0 and state["epoch"] % keep_every == 0


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def split_tensors(value: Any) -> tuple[Any, dict[str, Tensor]]:
    """Nested dictionaries and lists as JSON with the names of tensors, and these tensors."""
    tensors: dict[str, Tensor] = {}

    def visit(value: Any) -> Any:
        if isinstance(value, Tensor):
            name = str(len(tensors))
            tensors[name] = value
            return {"tensor": name}
        if isinstance(value, Mapping):
            return {"items": [[key, visit(part)] for key, part in value.items()]}
        if isinstance(value, list | tuple):
            return [visit(part) for part in value]
        return value

    return visit(value), tensors


def join_tensors(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `split_tensors`; tuples have become lists."""
    if isinstance(value, dict):
        if "tensor" in value:
            return tensors[value["tensor"]]
        return {key: join_tensors(part, tensors) for key, part in value["items"]}
    if isinstance(value, list):
        return [join_tensors(part, tensors) for part in value]
    return value


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors on the CPU that share no memory, which safetensors asks for."""
    return {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
