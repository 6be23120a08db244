"""Small pure functions on state dicts, for modules that know other code bases' names.

A module announces what it knows by methods that `efficient_vits.load_weights` looks up:

``from_reference(state) -> state``
    (static) The benchmark code's names and layout, below this module, to ours.
``from_transformers(state) -> state``
    (static) Likewise those of the transformers package.
``resample_parameter(name, value) -> value``
    A parameter trained at another resolution, brought to this module's.
``structural_buffers``
    Names of buffers that follow from the architecture, so that a file may lack them.
"""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class WeightsError(ValueError):
    """Weights that cannot be read, or do not belong to the model.

    Attributes:
        faults: Where weights were read and do not fit: kind of fault (``missing``, ``unexpected``,
            ``of another shape``) -> names. Empty where nothing could be read.
    """

    def __init__(self, message: str, faults: Mapping[str, Sequence[str]] | None = None) -> None:
        super().__init__(message)
        self.faults = {kind: list(names) for kind, names in (faults or {}).items() if names}


def put(state: dict[str, Tensor], name: str, value: Tensor) -> None:
    """Set `state[name]`; a second tensor for one name must equal the first."""
    if name in state and not torch.equal(state[name], value):
        raise WeightsError(f"{name} stands for two tensors with different values")
    state[name] = value


def rename(state: Mapping[str, Tensor], prefixes: Mapping[str, str]) -> dict[str, Tensor]:
    """`state` with the first matching prefix of every name replaced; collisions as in `put`."""
    out: dict[str, Tensor] = {}
    for name, value in state.items():
        for old, new in prefixes.items():
            if name.startswith(old):
                name = new + name[len(old) :]
                break
        put(out, name, value)
    return out


def substitute(state: Mapping[str, Tensor], patterns: Mapping[str, str]) -> dict[str, Tensor]:
    """`state` with every regular expression replaced in its names, in order; else as `rename`."""
    out: dict[str, Tensor] = {}
    for name, value in state.items():
        for pattern, replacement in patterns.items():
            name = re.sub(pattern, replacement, name)
        put(out, name, value)
    return out
