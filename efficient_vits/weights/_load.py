"""Strict loading: everything fits, or nothing is touched and everything that does not is named."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from efficient_vits._fit import best_fit, describe
from efficient_vits._state import WeightsError, overwrite
from efficient_vits.weights._files import read_state_dict


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
    best = best_fit(model, state)
    if best.faults:
        raise WeightsError(describe(model, best), best.faults)
    overwrite(model, best.values)
    return Loaded(best.layout, best.resampled, best.absent)
