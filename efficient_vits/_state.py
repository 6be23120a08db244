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
``authors_unused``
    Names at the root of the model that the authors' files have and their code never reads.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

WRAPPERS = ("model", "state_dict", "model_state")


class WeightsError(ValueError):
    """Weights that cannot be read, or do not belong to the model.

    Attributes:
        faults: Where weights were read and do not fit: kind of fault (``missing``, ``unexpected``,
            ``of another shape``) -> names. Empty where nothing could be read.
    """

    def __init__(self, message: str, faults: Mapping[str, Sequence[str]] | None = None) -> None:
        super().__init__(message)
        self.faults = {kind: list(names) for kind, names in (faults or {}).items() if names}


def opened(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors by name in what a file holds.

    Wrappers such as ``{"model": ...}`` are opened, and the prefixes of data-parallel (``module.``)
    and compiled (``_orig_mod.``) models taken off.

    Raises:
        WeightsError: Something else than tensors inside.
    """
    while wrapper := next((key for key in WRAPPERS if isinstance(content.get(key), Mapping)), None):
        content = content[wrapper]
    alien = [
        repr(key)
        for key, value in content.items()
        if not (isinstance(key, str) and isinstance(value, Tensor))
    ]
    if alien:
        raise WeightsError(
            f"a state dict maps names to tensors, but {_some(alien)} "
            f"{'is' if len(alien) == 1 else 'are'} something else; wrappers that are opened: "
            f"{', '.join(WRAPPERS)}"
        )
    state: dict[str, Tensor] = {}
    for key, value in content.items():
        put(state, _strip(key), value)
    return state


def _strip(key: str) -> str:
    key = key.replace("_orig_mod.", "")
    while key.startswith("module."):
        key = key[len("module.") :]
    return key


def _some(names: list[str], most: int = 5) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


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


def overwrite(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Copy `values` into the model; where a copy fails, all of it is taken back.

    Raises:
        WeightsError: A tensor that cannot be copied, such as a complex one into a real one.
    """
    target = model.state_dict(keep_vars=True)
    for name, value in values.items():
        if value.is_complex() and not target[name].is_complex():
            raise WeightsError(f"{name} is complex in these weights and real in the model")
    before = {name: target[name].detach().clone() for name in values}
    with torch.no_grad():
        try:
            for name, value in values.items():
                target[name].copy_(value)
        except RuntimeError as error:
            for name, value in before.items():
                target[name].copy_(value)
            raise WeightsError(f"these weights cannot be copied into the model: {error}") from error
