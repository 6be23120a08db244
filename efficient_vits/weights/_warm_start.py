"""A plain ViT's checkpoint as the beginning of a variant."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from efficient_vits._state import WeightsError
from efficient_vits.weights._files import read_state_dict
from efficient_vits.weights._layouts import LAYOUTS
from efficient_vits.weights._load import fit_state


@dataclass(frozen=True)
class WarmStart:
    """What `warm_start` did.

    Attributes:
        layout: Whose names the source had.
        kept: Entries of the model that have the source's values.
        resampled: Those of them that were brought to the model's resolution.
        new: Entries of the model that the source has nothing for; they are as they were.
        unused: Entries of the source that the model has no place for.
    """

    layout: str
    kept: list[str]
    resampled: list[str]
    new: list[str]
    unused: list[str]


def warm_start(model: nn.Module, source: str | Path | Mapping[str, Any] | nn.Module) -> WarmStart:
    """Carry over what fits from another model's weights, such as a plain ViT's into a variant.

    A class-token slot in the position embedding and absent LayerScale are converted exactly. What
    the model has and the source has not stays as it is; a classifier of another size stays new.

    Args:
        model: The model to start; it keeps its device and dtype.
        source: A model, a file or a state dict, as `load_weights` takes it.

    Returns:
        The account of every entry.

    Raises:
        WeightsError: The file cannot be read, or nothing in it fits; the model is as it was.
        ValueError: The model is on the meta device.
    """
    if any(p.is_meta for p in model.parameters()):
        raise ValueError("the model is on the meta device and has no memory to load into")
    state = source.state_dict() if isinstance(source, nn.Module) else read_state_dict(source)
    converted = {name: convert(model, state) for name, convert in LAYOUTS.items()}
    fits = [fit_state(model, name, values) for name, values in converted.items()]
    best = max(fits, key=lambda fit: len(fit.values))
    if not best.values:
        raise WeightsError(f"nothing in these weights fits {type(model).__name__}")
    target = model.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, value in best.values.items():
            target[name].copy_(value)
    return WarmStart(
        best.layout,
        kept=list(best.values),
        resampled=best.resampled,
        new=[name for name in target if name not in best.values],
        unused=[name for name in converted[best.layout] if name not in best.values],
    )
