"""Whose parameter names a state dict has, and how they become ours.

A layout is a function ``(model, state) -> state``. Knowledge about one module's names lies on that
module (see `efficient_vits._state`), or in `_timm_classes` where the module is timm's; here is what
concerns a whole model.
"""

import functools
import math
import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from efficient_vits._state import put
from efficient_vits._timm_classes import translation_of

SCALES = re.compile(r"\.ls[12]\.gamma$")
Layout = Callable[[nn.Module, Mapping[str, Tensor]], dict[str, Tensor]]
Translation = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


def own(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our own names."""
    return dict(state)


def announced(find: Callable[[nn.Module], Translation | None]) -> Layout:
    """The layout that modules translate, each its own part, by what `find` says of them."""

    def convert(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        out = dict(state)
        # Inner modules first: what they make is part of what their parents see.
        for prefix, module in reversed(list(model.named_modules())):
            translate = find(module)
            if translate is None:
                continue
            prefix = f"{prefix}." if prefix else ""
            inside = [name for name in out if name.startswith(prefix)]
            part = {name[len(prefix) :]: out.pop(name) for name in inside}
            for name, value in translate(part).items():
                put(out, prefix + name, value)
        return out

    return convert


def from_reference(module: nn.Module) -> Translation | None:
    """What translates the benchmark's names: the module's own, or what stands for a timm class."""
    own: Translation | None = getattr(module, "from_reference", None)
    if own is not None:
        return own
    known = translation_of(module)
    return None if known is None else functools.partial(known, module)


def from_transformers(module: nn.Module) -> Translation | None:
    """What translates the names of the transformers package."""
    own: Translation | None = getattr(module, "from_transformers", None)
    return own


def timm_vit(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """timm's plain ViT: a slot for the class token in the position embedding, no LayerScale.

    Both differences are exact: the slot is added to the class token, LayerScale is 1.
    """
    out = dict(state)
    if getattr(model, "no_embed_class", False) and _has_slot(out):
        slot, grid = out["pos_embed"][:, :1], out["pos_embed"][:, 1:]
        out["cls_token"], out["pos_embed"] = out["cls_token"] + slot, grid
    return with_unit_scales(model, out)


def authors(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Authors' releases: mostly the benchmark's names, which kept theirs, without LayerScale.

    What their code stores and never reads is left out (`authors_unused` of the modules); a network
    without LayerScale is one whose LayerScale is 1.
    """
    unused = {name for part in model.modules() for name in getattr(part, "authors_unused", ())}
    read = {name: value for name, value in state.items() if name not in unused}
    return with_unit_scales(model, announced(from_reference)(model, read))


def with_unit_scales(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state`, with the model's LayerScale at 1 where it has none at all."""
    if any(SCALES.search(name) for name in state):
        return state
    scales = {name: v for name, v in model.state_dict().items() if SCALES.search(name)}
    return state | {name: torch.ones_like(value) for name, value in scales.items()}


def _has_slot(state: Mapping[str, Tensor]) -> bool:
    """Whether the position embedding has one entry more than a square grid, for the class token."""
    if not {"pos_embed", "cls_token"} <= state.keys() or state["pos_embed"].ndim != 3:
        return False
    tokens = state["pos_embed"].shape[1] - 1
    return tokens > 0 and math.isqrt(tokens) ** 2 == tokens


LAYOUTS: Mapping[str, Layout] = {
    "efficient_vits": own,
    "benchmark reference": announced(from_reference),
    "timm ViT": timm_vit,
    "authors": authors,
    "transformers": announced(from_transformers),
}
