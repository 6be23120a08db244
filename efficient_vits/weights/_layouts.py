"""Whose parameter names a state dict has, and how they become ours.

A layout is a function ``(model, state) -> state``. Knowledge about one module's names lies on that
module (see `efficient_vits._state`); here is what concerns a whole model.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from efficient_vits.weights._files import put

Layout = Callable[[nn.Module, Mapping[str, Tensor]], dict[str, Tensor]]


def own(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our own names."""
    return dict(state)


def reference(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The benchmark's code: every module that knows its names there translates its own part."""
    out = dict(state)
    # Inner modules first: what they make is part of what their parents see.
    for prefix, module in reversed(list(model.named_modules())):
        if not hasattr(module, "from_reference"):
            continue
        prefix = f"{prefix}." if prefix else ""
        part = {name[len(prefix) :]: out.pop(name) for name in list(out) if name.startswith(prefix)}
        for name, value in module.from_reference(part).items():
            put(out, prefix + name, value)
    return out


def timm_vit(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """timm's plain ViT: a slot for the class token in the position embedding, no LayerScale.

    Both differences are exact: the slot is added to the class token, LayerScale is 1.
    """
    out = dict(state)
    target = model.state_dict()
    if getattr(model, "no_embed_class", False) and {"pos_embed", "cls_token"} <= out.keys():
        tokens = out["cls_token"].shape[1]
        slot, grid = out["pos_embed"][:, :tokens], out["pos_embed"][:, tokens:]
        out["cls_token"], out["pos_embed"] = out["cls_token"] + slot, grid
    for name, value in target.items():
        if name.endswith((".ls1.gamma", ".ls2.gamma")) and name not in out:
            out[name] = torch.ones_like(value)
    return out


LAYOUTS: Mapping[str, Layout] = {
    "efficient_vits": own,
    "benchmark reference": reference,
    "timm ViT": timm_vit,
}
