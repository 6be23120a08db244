"""Weights from a file, and what is wrong with them, in one line."""

import re
from collections.abc import Mapping
from pathlib import Path

import timm
from torch import Tensor, nn

from efficient_vits.cli._errors import UserError
from efficient_vits.weights import Loaded, WeightsError, load_weights
from efficient_vits.weights._files import read_state_dict

_KIND = re.compile(r" *(?P<title>[^(]+) \((?P<count>\d+)\): (?P<names>.*)")
_MISSHAPEN = re.compile(r"\S+ \([\d, ]*\), want \([\d, ]*\)")
_SHOWN = 3


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors in a file by name."""
    try:
        return read_state_dict(path)
    except (WeightsError, OSError) as error:
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
        raise UserError(f"--weights {path} for {name}: {shorten(str(error))}") from error


def shorten(message: str) -> str:
    """A `WeightsError` in one line, with the first three names of every kind of fault."""
    first, *kinds = message.splitlines()
    return " ".join([first, "; ".join(map(_shorten_kind, kinds))]).strip()


def _shorten_kind(line: str) -> str:
    match = _KIND.fullmatch(line)
    if match is None:
        return line.strip()
    names = _MISSHAPEN.findall(match["names"]) or match["names"].split(", ")
    more = ", ..." if len(names) > _SHOWN else ""
    return f"{match['title']} ({match['count']}): {', '.join(names[:_SHOWN])}{more}"
