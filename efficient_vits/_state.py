"""Small pure functions on state dicts, for modules that know other code bases' names.

A module announces what it knows by methods that `efficient_vits.load_weights` looks up:

``from_reference(state) -> state``
    (static) The benchmark code's names and layout, below this module, to ours.
``resample_parameter(name, value) -> value``
    A parameter trained at another resolution, brought to this module's.
``structural_buffers``
    Names of buffers that follow from the architecture, so that a file may lack them.
"""

from collections.abc import Mapping

from torch import Tensor


def rename(state: Mapping[str, Tensor], prefixes: Mapping[str, str]) -> dict[str, Tensor]:
    """`state` with the first matching prefix of every name replaced."""
    out = {}
    for name, value in state.items():
        for old, new in prefixes.items():
            if name.startswith(old):
                name = new + name[len(old) :]
                break
        out[name] = value
    return out
