"""Models by their names in timm, and the images that a model was built for."""

import difflib
from collections.abc import Sequence

import timm
import torch
from torch import nn

DEFAULT_INPUT_SIZE = (3, 224, 224)


def build(name: str, input_size: Sequence[int] | None = None, *, meta: bool = False) -> nn.Module:
    """A model of timm's registry, without weights.

    Args:
        name: as `timm.create_model` takes it.
        input_size: size of one image; a model for images of one size is built for this one.
        meta: whether to build it without memory. A model whose constructor needs values is built
            with them all the same.

    Raises:
        ValueError: timm knows no model of this name; the message has the nearest names.
    """
    # A name with a scheme ("hf-hub:...", "local-dir:...") is not in timm's registry.
    registered = ":" not in name
    if registered and not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=5)
        hint = f"; near names: {', '.join(near)}" if near else ""
        raise ValueError(f"timm knows no model {name!r}{hint}")
    arguments = {}
    config = timm.get_pretrained_cfg(name) if registered else None
    if input_size is not None and config is not None and config.fixed_input_size:
        arguments["img_size"] = tuple(input_size[1:])
    if meta and registered:
        try:
            with torch.device("meta"):
                return _create(name, arguments)
        except (RuntimeError, NotImplementedError):
            pass  # it asked a tensor for its values
    return _create(name, arguments)


def own_input_size(model: nn.Module) -> tuple[int, ...]:
    """What a timm model was built for: its configuration, corrected by its own attributes."""
    config = getattr(model, "pretrained_cfg", None) or {}
    channels, *size = config.get("input_size") or DEFAULT_INPUT_SIZE
    # The configuration keeps its values when a model is built with img_size= or in_chans=.
    patch_embed = getattr(model, "patch_embed", None)
    size = getattr(patch_embed, "img_size", None) or size
    return (getattr(model, "in_chans", channels), *size)


def _create(name: str, arguments: dict[str, tuple[int, ...]]) -> nn.Module:
    model: nn.Module = timm.create_model(name, **arguments)
    return model
