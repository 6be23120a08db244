"""Model names and image sizes from the command line, checked before anything expensive starts."""

import difflib
import warnings
from typing import Any

import timm
from timm.layers import to_2tuple
from torch import nn

from efficient_vits.catalog import cards, is_available
from efficient_vits.cli._errors import UserError, mistakes
from efficient_vits.cli._values import Size


def check_name(name: str) -> None:
    """Raise UserError unless timm can build a model of this name."""
    if not is_available(name):
        if name in cards():
            raise UserError(
                f"model {name!r} is in the catalog, but not yet in this version; "
                f"see 'efficient-vits list'"
            )
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "see 'efficient-vits list'"
        raise UserError(f"no model {name!r}; {hint}")
    with mistakes(RuntimeError):
        timm.get_pretrained_cfg(name)  # raises on an unknown tag behind the name


def check_size(name: str, size: Size | None) -> None:
    """Raise UserError unless the model can be built for images of this size."""
    if size is None:
        return
    shown = f"--img-size {size[0]}x{size[1]}"
    with (
        warnings.catch_warnings(),
        mistakes(
            AssertionError,
            RuntimeError,
            TypeError,
            ValueError,
            prefix=f"{shown} does not suit {name}: ",
        ),
    ):
        warnings.simplefilter("ignore")  # initialising on the meta device is a no-op, and said so
        model = create(name, size, device="meta")
    patch_size = getattr(getattr(model, "patch_embed", None), "patch_size", 1)
    height, width = to_2tuple(patch_size)
    if size[0] % height or size[1] % width:
        raise UserError(
            f"{shown} does not suit {name}; accepted are multiples of its patch size, "
            f"{height}x{width}"
        )


def create(name: str, size: Size | None, **arguments: Any) -> nn.Module:
    """A model for images of this size; a model that takes any size isn't told."""
    config = timm.get_pretrained_cfg(name)
    if size is not None and config is not None and config.fixed_input_size:
        arguments["img_size"] = size
    model: nn.Module = timm.create_model(name, **arguments)
    return model
