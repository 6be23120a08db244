"""Weights from a file, and what is wrong with them, in one line."""

from collections.abc import Mapping
from pathlib import Path

import timm
from torch import Tensor, nn

from efficient_vits.cli._errors import UserError
from efficient_vits.weights import Loaded, WeightsError, load_weights, read_state_dict

_SHOWN = 3


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors in a file by name."""
    try:
        return read_state_dict(path)
    except WeightsError as error:
        raise UserError(f"--weights: {error}") from error


def count_classes(name: str, state: Mapping[str, Tensor], path: Path) -> int:
    """How many classes the classifier in the file has, for a model of this name."""
    config = timm.get_pretrained_cfg(name)
    classifier = config.classifier if config else None
    if isinstance(classifier, tuple):  # distilled models have one more of the same size
        classifier = classifier[0]
    key = f"{classifier}.weight"
    if key not in state or state[key].ndim < 2:
        raise UserError(
            f"--weights {path} has no classifier; accepted are weights of {name}, with {key}"
        )
    return len(state[key])


def load(model: nn.Module, state: Mapping[str, Tensor], *, name: str, path: Path) -> Loaded:
    """Load the weights, all or nothing."""
    try:
        return load_weights(model, state)
    except WeightsError as error:
        raise UserError(f"--weights {path} for {name}: {shorten(error)}") from error


def shorten(error: WeightsError) -> str:
    """The error in one line, with the first three names of every kind of fault."""
    first = str(error).splitlines()[0]
    return " ".join([first, "; ".join(_kind(*fault) for fault in error.faults.items())]).strip()


def _kind(kind: str, names: list[str]) -> str:
    more = ", ..." if len(names) > _SHOWN else ""
    return f"{kind} ({len(names)}): {', '.join(names[:_SHOWN])}{more}"
