r"""ResT: a pyramid of EMSA blocks, whose positions come from a gate.

A stem of three convolutions divides the image by 4, a strided convolution each further level by 2.
Each ends in the position encoding: with dw a depth-wise 3x3 convolution,

    x <- x * sigmoid(dw(x))

It knows positions by the padding at the border, and images of any size go through. Blocks mix by
`efficient_vits.attention.emsa`, with fewer keys the finer the level; the classifier reads the mean
of all tokens.

Source: Zhang and Yang, "ResT: An Efficient Transformer for Visual Recognition", NeurIPS 2021 (arXiv
2105.13677), section 3 and table 1. Written anew (the authors' code is Apache-2.0). Unlike there, a
map with an odd number of rows or columns is not cut short.
"""

import functools
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.layers import ConvNormAct, LayerNorm, calculate_drop_path_rates, trunc_normal_
from torch import Tensor, nn

from efficient_vits import catalog
from efficient_vits._state import substitute
from efficient_vits.attention.emsa import EmsaAttention
from efficient_vits.models import efficient_vits
from efficient_vits.models._pyramid import EPS, GridBlock, Pyramid, Stage

SR_RATIOS = (8, 4, 2, 1)  # rows and columns of patches per key

# Names of the benchmark's code, which are the authors', to ours. They count levels from 1.
REFERENCE = {
    **{rf"^stage{i + 1}\.": f"stages.{i}.blocks." for i in range(4)},
    **{rf"^patch_embed_{i + 1}\.": f"stages.{i}.downsample." for i in range(1, 4)},
    r"^stem\.conv(\d)\.": r"stages.0.downsample.conv\1.conv.",
    r"^stem\.norm(\d)\.": r"stages.0.downsample.conv\1.bn.",
    r"^stem\.pos\.": "stages.0.downsample.pos.",
    r"\.downsample\.conv\.": ".downsample.proj.conv.",
    r"\.downsample\.norm\.": ".downsample.proj.bn.",
    r"\.pos\.pa_conv\.": ".pos.conv.",
    r"\.attn\.transform_conv\.": ".attn.interaction.",
}


class PixelAttention(nn.Module):
    """Position encoding: every value is gated by its neighbourhood, (B, dim, H, W) -> the same."""

    def __init__(self, dim: int, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.conv(x).sigmoid()


class Stem(nn.Module):
    """The first map: (B, in_chans, H, W) -> (B, dim, H / 4, W / 4), rounded up."""

    def __init__(self, in_chans: int, dim: int, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.conv1 = ConvNormAct(in_chans, dim // 2, 3, stride=2, **factory)
        self.conv2 = ConvNormAct(dim // 2, dim // 2, 3, **factory)
        self.conv3 = ConvNormAct(
            dim // 2, dim, 3, stride=2, apply_norm=False, apply_act=False, **factory
        )
        self.pos = PixelAttention(dim, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return self.pos(self.conv3(self.conv2(self.conv1(x))))


class PatchEmbed(nn.Module):
    """The map of a further level: (B, in_chans, H, W) -> (B, dim, H / 2, W / 2), rounded up."""

    def __init__(self, in_chans: int, dim: int, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.proj = ConvNormAct(in_chans, dim, 3, stride=2, bias=True, apply_act=False, **factory)
        self.pos = PixelAttention(dim, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return self.pos(self.proj(x))


class ResT(Pyramid):
    """ResT.

    Args:
        in_chans: Channels of the image.
        num_classes: Outputs of the classifier; 0 for none.
        global_pool: ``"avg"``, the mean of all tokens, or ``""``, the map as it is.
        depths: Blocks of the four levels.
        embed_dims: Their channels.
        num_heads: Their heads.
        mlp_ratio: Hidden channels of the MLPs, in units of the level's.
        qkv_bias: Whether queries, keys and values have a bias.
        drop_rate: Dropout in front of the classifier.
        proj_drop_rate: Dropout after attention and in the MLPs.
        attn_drop_rate: Dropout on attention weights.
        drop_path_rate: Stochastic depth of the last block; it grows from 0 at the first.

    Shape: images (B, in_chans, H, W) -> logits (B, num_classes). `forward_features` gives the
    normed map (B, C, H / 32, W / 32).
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        *,
        depths: Sequence[int] = (2, 2, 6, 2),
        embed_dims: Sequence[int] = (64, 128, 256, 512),
        num_heads: Sequence[int] = (1, 2, 4, 8),
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        factory = {"device": device, "dtype": dtype}
        rates = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        stages = []
        for i, (dim, heads, sr_ratio, drop_paths) in enumerate(
            zip(embed_dims, num_heads, SR_RATIOS, rates, strict=True)
        ):
            blocks = [
                GridBlock(
                    dim,
                    EmsaAttention(
                        dim,
                        heads,
                        qkv_bias=qkv_bias,
                        attn_drop=attn_drop_rate,
                        proj_drop=proj_drop_rate,
                        num_prefix_tokens=0,
                        sr_ratio=sr_ratio,
                        **factory,
                    ),
                    mlp_ratio=mlp_ratio,
                    drop=proj_drop_rate,
                    drop_path=drop_path,
                    **factory,
                )
                for drop_path in drop_paths
            ]
            downsample: nn.Module = Stem(in_chans, dim, **factory)
            if i:
                downsample = PatchEmbed(embed_dims[i - 1], dim, **factory)
            stages.append(Stage(dim, downsample, blocks))
        super().__init__(
            stages,
            LayerNorm(embed_dims[-1], eps=EPS, **factory),
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            **factory,
        )
        self.init_weights()

    @torch.jit.ignore
    def init_module(self, module: nn.Module) -> None:
        """Draw the weights of one layer, convolutions as narrow as linear layers."""
        super().init_module(module)
        if isinstance(module, nn.Conv2d):
            trunc_normal_(module.weight, std=0.02)

    @staticmethod
    def from_reference(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Parameter names of the benchmark's code to ours."""
        return substitute(state, REFERENCE)


_CFG = {
    "first_conv": "stages.0.downsample.conv1.conv",
    "classifier": "head",
    "pool_size": (7, 7),
}

# Table 1; rest_s is the class's default.
_WIDE = {"embed_dims": (96, 192, 384, 768)}
_SIZES: dict[str, dict[str, Any]] = {
    "rest_lite": {"depths": (2, 2, 2, 2)},
    "rest_s": {},
    "rest_b": {**_WIDE},
    "rest_l": {**_WIDE, "depths": (2, 2, 18, 2)},
}

for _name, _arguments in _SIZES.items():
    efficient_vits.add_entry_point(
        _name,
        ResT,
        doc=(
            f"ResT-{_name[5:].capitalize()}. "
            f"Takes all arguments of `efficient_vits.models.rest.ResT`."
        ),
        cfg=_CFG,
        feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
        merge=functools.partial(operator.or_, _arguments),
    )
    catalog.derive(_name, axis="attention", relatives=["rest_s"])
