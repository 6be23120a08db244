"""timm's CaiT, for images of another size and with the parts of the protocol that it lacks."""

import math
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed, resample_patch_embed, trunc_normal_
from timm.models.cait import Cait
from torch import Tensor, nn


class SizedCait(Cait):
    """timm's `Cait` with `set_input_size`, `init_weights` and ``output_dict``.

    Args:
        init_values: Initial LayerScale.
        **arguments: Those of timm's `Cait`.
    """

    def __init__(self, init_values: float = 1e-4, **arguments: Any) -> None:
        super().__init__(init_values=init_values, **arguments)
        self.init_values = init_values

    @torch.jit.ignore
    def init_weights(self) -> None:
        """Draw all weights anew, also those without values after ``to_empty``."""
        module: Any
        for module in self.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
            for name in ("gamma_1", "gamma_2"):
                if hasattr(module, name):
                    nn.init.constant_(getattr(module, name), self.init_values)
        for parameter in (self.pos_embed, self.cls_token):
            if parameter is not None:
                trunc_normal_(parameter, std=0.02)
        self.apply(self._init_weights)

    @torch.jit.ignore
    def set_input_size(
        self,
        img_size: tuple[int, int] | None = None,
        patch_size: tuple[int, int] | None = None,
    ) -> None:
        """Change the input resolution; the position embedding is resampled.

        Args:
            img_size: New height and width in pixels; None keeps them.
            patch_size: New height and width of a patch in pixels; None keeps them.
        """
        before = self.patch_embed.grid_size
        self.patch_embed.set_input_size(img_size=img_size, patch_size=patch_size)
        if tuple(self.patch_embed.grid_size) == tuple(before):
            return
        old = self.pos_embed
        new = resample_abs_pos_embed(
            old.detach(), list(self.patch_embed.grid_size), list(before), num_prefix_tokens=0
        )
        self.pos_embed: nn.Parameter = nn.Parameter(new, requires_grad=old.requires_grad)

    @torch.jit.ignore
    def resample_parameter(self, name: str, value: Tensor) -> Tensor:
        """Position embedding or patch kernel of another, square, resolution brought to this one."""
        if name == "patch_embed.proj.weight" and value.ndim == 4 and value.numel():
            return resample_patch_embed(value, list(self.patch_embed.patch_size))
        if name != "pos_embed" or value.ndim != 3 or not value.numel():
            return value
        side = math.isqrt(value.shape[1])
        if side**2 != value.shape[1]:
            return value
        return resample_abs_pos_embed(
            value, list(self.patch_embed.grid_size), [side, side], num_prefix_tokens=0
        )

    @torch.jit.ignore
    def forward_intermediates(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """timm's, and with ``output_dict=True`` its results by name.

        The maps have no prefix tokens: the class token is not there in the blocks they come from.
        """
        output_dict = kwargs.pop("output_dict", False)
        result = super().forward_intermediates(x, *args, **kwargs)
        if not output_dict:
            return result
        if isinstance(result, list):
            return {"image_intermediates": result}
        features, maps = result
        return {"image_features": features, "image_intermediates": maps}
