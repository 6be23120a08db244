"""Strict loading: everything fits, or nothing is touched and everything that does not is named."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from efficient_vits._state import WeightsError
from efficient_vits.weights._files import read_state_dict
from efficient_vits.weights._layouts import LAYOUTS


@dataclass(frozen=True)
class Loaded:
    """What `load_weights` did.

    Attributes:
        layout: Whose names the file had.
        resampled: Parameters that were brought to the model's resolution.
        absent: Buffers that the file lacked and that follow from the architecture.
    """

    layout: str
    resampled: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Fit:
    """A state dict in one layout, against the model."""

    layout: str
    values: Mapping[str, Tensor]
    resampled: list[str]
    absent: list[str]
    missing: list[str]
    unexpected: list[str]
    misshapen: list[str]

    @property
    def faults(self) -> dict[str, list[str]]:
        kinds = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "of another shape": self.misshapen,
        }
        return {kind: names for kind, names in kinds.items() if names}


def load_weights(model: nn.Module, source: str | Path | Mapping[str, Any]) -> Loaded:
    """Load weights of any known layout into a model, strictly.

    Layouts: this package's own, timm's plain ViT, the code of the benchmark "Which Transformer to
    Favor", and for some families the transformers package; which one it is, is found out. What
    depends on the resolution is resampled to the model's. Buffers that follow from the architecture
    may be absent.

    Args:
        model: The model; it keeps its device and dtype.
        source: A safetensors file, a PyTorch file (read with ``weights_only=True``: nothing in it
            is run), or a state dict; wrappers ``{"model": ...}``, ``{"state_dict": ...}`` and
            ``{"model_state": ...}`` are opened, prefixes ``module.`` and ``_orig_mod.`` taken off.

    Returns:
        Which layout it was, what was resampled, what was absent.

    Raises:
        WeightsError: The file cannot be read, or something is missing, unexpected or of another
            shape; all of it is listed, and the model is as it was.
        ValueError: The model is on the meta device and has no memory to load into.
    """
    if any(p.is_meta for p in model.parameters()):
        raise ValueError(
            "the model is on the meta device; call model.to_empty(device='cpu') and "
            "model.init_weights() before loading weights"
        )
    state = read_state_dict(source)
    fits = [fit_state(model, name, convert(model, state)) for name, convert in LAYOUTS.items()]
    best = min(fits, key=lambda fit: sum(map(len, fit.faults.values())))
    if best.faults:
        raise WeightsError(_describe(model, best), best.faults)
    target = model.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, value in best.values.items():
            target[name].copy_(value)
    return Loaded(best.layout, best.resampled, best.absent)


def fit_state(model: nn.Module, layout: str, state: Mapping[str, Tensor]) -> Fit:
    """How a state dict in the model's own names fits it."""
    target = model.state_dict()
    values, resampled, unexpected, misshapen = {}, [], [], []
    for name, value in state.items():
        if name not in target:
            unexpected.append(name)
            continue
        adapted = value
        if value.shape != target[name].shape:
            adapted = resample(model, name, value)
        if adapted.shape != target[name].shape:
            wanted = tuple(target[name].shape)
            misshapen.append(f"{name} {tuple(value.shape)}, want {wanted}")
            continue
        values[name] = adapted
        if adapted is not value:
            resampled.append(name)
    lacking = [name for name in target if name not in state]
    absent = [name for name in lacking if _is_structural(model, name)]
    missing = [name for name in lacking if name not in absent]
    return Fit(layout, values, resampled, absent, missing, unexpected, misshapen)


def _is_structural(model: nn.Module, name: str) -> bool:
    """Whether a state entry follows from the architecture: an index, a mask, a counter."""
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    if leaf not in dict(module.named_buffers(recurse=False)):
        return False
    if leaf in getattr(module, "structural_buffers", ()):
        return True
    return not module.get_buffer(leaf).is_floating_point()


def resample(model: nn.Module, name: str, value: Tensor) -> Tensor:
    """A parameter of another resolution brought to the model's; unchanged where that can't be.

    The innermost module around the parameter that knows how to does it.
    """
    path = name.split(".")
    for depth in reversed(range(len(path))):
        module: Any = model.get_submodule(".".join(path[:depth]))
        if hasattr(module, "resample_parameter"):
            resampled: Tensor = module.resample_parameter(".".join(path[depth:]), value)
            return resampled
    return value


def _describe(model: nn.Module, fit: Fit) -> str:
    """Everything that does not fit, by name."""
    lines = [f"these weights do not fit {type(model).__name__}, read as {fit.layout!r}:"]
    for kind, names in fit.faults.items():
        lines.append(f"  {kind} ({len(names)}): {', '.join(names)}")
    return "\n".join(lines)
