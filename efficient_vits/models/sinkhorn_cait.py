"""Sparse Sinkhorn attention in CaiT's shell, at the sizes of the ViT.

The shell is timm's `Cait` (Apache-2.0): patches mix in the blocks, and a class token collects from
them in two class-attention blocks at the end. Source: Touvron et al., "Going deeper with Image
Transformers", ICCV 2021 (arXiv 2103.17239), section 3; for the mixer see
`efficient_vits.attention.sinkhorn`. As in the benchmark's runs, buckets are sorted by "topk", hold
at most 32 tokens, and sorted keys take the place of sorted values, a slip of the library that was
used there; ``keys_as_values=False`` is the paper's attention.
"""

import functools
import inspect
import math
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed, resample_patch_embed, trunc_normal_
from timm.models.cait import Cait
from torch import Tensor, nn

from efficient_vits import catalog
from efficient_vits.attention.sinkhorn import SinkhornAttention
from efficient_vits.models import efficient_vits
from efficient_vits.models.variants import CFG, PATCH_SIZE, SIZES

CAIT_PARAMETERS = frozenset(inspect.signature(Cait).parameters)
BENCHMARK: dict[str, Any] = {"sort": "topk", "keys_as_values": True}


class SinkhornCait(Cait):
    """CaiT whose blocks mix patches by sparse Sinkhorn attention; timm's `Cait` otherwise.

    Args:
        init_values: Initial LayerScale.
        **arguments: Those of timm's `Cait`, and the own ones of `SinkhornAttention`: ``sort``,
            ``max_bucket``, ``n_top``, ``iterations``, ``temperature``, ``keys_as_values``.

    Raises:
        TypeError: An argument that neither of the two takes.
    """

    def __init__(self, init_values: float = 1e-4, **arguments: Any) -> None:
        shell = {k: v for k, v in arguments.items() if k in CAIT_PARAMETERS}
        own = {k: v for k, v in arguments.items() if k not in CAIT_PARAMETERS}
        mixer = functools.partial(SinkhornAttention, num_prefix_tokens=0, **{**BENCHMARK, **own})
        super().__init__(**{"attn_block": mixer, "init_values": init_values, **shell})
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


def _merge(host: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    return {**host, **arguments}


_NAMES = {f"sinkhorn_cait_{size}{PATCH_SIZE}": size for size in SIZES}
for _name, _size in _NAMES.items():
    efficient_vits.add_entry_point(
        _name,
        SinkhornCait,
        doc=(
            f"CaiT-{_size.capitalize()}/{PATCH_SIZE} with sparse Sinkhorn attention.\n\n"
            f"Takes all arguments of `SinkhornCait`."
        ),
        cfg=CFG,
        feature_cfg={"out_indices": 3, "feature_cls": "getter"},
        merge=functools.partial(_merge, {"patch_size": PATCH_SIZE, **SIZES[_size]}),
    )
    catalog.derive(_name, axis="attention", relatives=list(_NAMES))
