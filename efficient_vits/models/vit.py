"""The composable ViT: timm's `VisionTransformer` with attention, reduction and MLP as arguments.

Source of the host: Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021 (arXiv
2010.11929), in the form of the benchmark "Which Transformer to Favor" (arXiv 2308.09372): position
embedding without a slot for the class token and LayerScale, as in Touvron et al., "DeiT III", ECCV
2022 (arXiv 2204.07118).
"""

import functools
import math
from typing import Any, ClassVar

import torch
from timm.layers import resample_abs_pos_embed, resample_patch_embed, to_2tuple
from timm.models import VisionTransformer
from torch import Tensor

from efficient_vits._registry import Mechanism
from efficient_vits.attention import attention_traits
from efficient_vits.models.block import Block


class ComposableViT(VisionTransformer):
    """A ViT whose token mixer and MLP are arguments; all of timm's methods and arguments hold.

    Args:
        img_size: Height and width of the input in pixels.
        patch_size: Height and width of a patch in pixels.
        attention: The token mixer.
        mlp: The MLP block.
        **arguments: Those of timm's `VisionTransformer`.

    Raises:
        ValueError: The attention cannot work with the other arguments, or an image has no patch.
    """

    __jit_unused_properties__: ClassVar[list[str]] = ["token_counts"]

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        *,
        attention: Mechanism,
        mlp: Mechanism,
        block_fn: Any = Block,
        **arguments: Any,
    ) -> None:
        grid_size = _grid_of(img_size, patch_size)
        num_prefix_tokens = arguments.get("class_token", True) + arguments.get("reg_tokens", 0)
        if is_our_block(block_fn):
            _check_attention(attention, arguments)
            block_fn = functools.partial(
                block_fn,
                attention=attention,
                mlp=mlp,
                grid_size=grid_size,
                num_prefix_tokens=num_prefix_tokens,
            )
        super().__init__(img_size=img_size, patch_size=patch_size, block_fn=block_fn, **arguments)
        if tuple(self.patch_embed.grid_size) != grid_size:  # an embed_layer with its own stride
            self._set_grid_size()
        self.composition = f"attention={attention.name!r}, mlp={mlp.name!r}"

    @property
    def token_counts(self) -> list[int | None]:
        """Number of tokens after each block, prefix tokens included; None where it is not fixed."""
        count = self.patch_embed.num_patches + self.num_prefix_tokens
        return [count] * len(self.blocks)

    @torch.jit.ignore
    def set_input_size(
        self,
        img_size: tuple[int, int] | None = None,
        patch_size: tuple[int, int] | None = None,
    ) -> None:
        """Change the input resolution; position embedding and mechanisms are resampled.

        Args:
            img_size: New height and width in pixels; None keeps them.
            patch_size: New height and width of a patch in pixels; None keeps them.

        Raises:
            ValueError: An image has no patch; the model is as it was.
        """
        _grid_of(
            self.patch_embed.img_size if img_size is None else img_size,
            self.patch_embed.patch_size if patch_size is None else patch_size,
        )
        super().set_input_size(img_size=img_size, patch_size=patch_size)
        self._set_grid_size()

    @torch.jit.ignore
    def _set_grid_size(self) -> None:
        for module in self.blocks.modules():
            if hasattr(module, "set_grid_size"):
                module.set_grid_size(tuple(self.patch_embed.grid_size))

    @torch.jit.ignore
    def resample_parameter(self, name: str, value: Tensor) -> Tensor:
        """Position embedding or patch kernel of another, square, resolution brought to this one."""
        if name == "patch_embed.proj.weight" and value.ndim == 4 and value.numel():
            return resample_patch_embed(value, list(self.patch_embed.patch_size))
        if name != "pos_embed" or value.ndim != 3 or not value.numel():
            return value
        prefix = 0 if self.no_embed_class else self.num_prefix_tokens
        side = math.isqrt(max(value.shape[1] - prefix, 0))
        if side == 0 or side**2 != value.shape[1] - prefix:
            return value
        return resample_abs_pos_embed(
            value, list(self.patch_embed.grid_size), [side, side], num_prefix_tokens=prefix
        )

    def extra_repr(self) -> str:
        return self.composition


def _grid_of(img_size: int | tuple[int, int], patch_size: int | tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of patches; pixels beyond the last whole patch do not count."""
    (height, width), (patch_height, patch_width) = to_2tuple(img_size), to_2tuple(patch_size)
    if not (1 <= patch_height <= height and 1 <= patch_width <= width):
        raise ValueError(
            f"got img_size={img_size} with patch_size={patch_size}; accepted are patches of at "
            "least one pixel, and images at least as large as a patch"
        )
    return height // patch_height, width // patch_width


def _check_attention(attention: Mechanism, arguments: dict[str, Any]) -> None:
    """Raise if the attention cannot work in a ViT with these arguments."""
    traits = attention_traits(attention)
    if not traits.mixes_prefix and arguments.get("global_pool", "token") == "token":
        raise ValueError(
            f"{attention.name} lets prefix tokens pass by: a class token would never see the "
            f"image; pass global_pool='avg'"
        )
    if traits.token_count or traits.grid:
        for name in ("dynamic_img_size", "patch_drop_rate"):
            if arguments.get(name):
                raise ValueError(
                    f"{attention.name} is bound to the grid of patches, which "
                    f"{name}={arguments[name]!r} changes from call to call; use set_input_size"
                )


def is_our_block(block_fn: Any) -> bool:
    """Whether a ``block_fn`` takes attention and MLP as arguments, as `Block` does."""
    cls = getattr(block_fn, "func", block_fn)
    return isinstance(cls, type) and issubclass(cls, Block)
