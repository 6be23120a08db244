r"""EfficientMod: a pyramid of modulation blocks, with some softmax attention in coarse stages.

    x + s * modulation(norm x),    modulation wide and narrow in turn

The modulation block is mixer and MLP in one (see `efficient_vits.attention.efficient_modulation`).
One whose values are as wide as its tokens follows one whose values are several times as wide.

Source: Ma et al., "Efficient Modulation for Vision Networks", ICLR 2024 (arXiv 2403.19963), section
3. Written anew (the authors' code is Apache-2.0). In contrast to that code, `drop_rate` is
dropout before the classifier and not within the blocks. At the published sizes, heads of attention
have at least 32 channels, as there; at other `embed_dim`, attention has as many channels as its
stage unless `attn_dims` says otherwise, as in the benchmark's run of S with 32-64-128-256.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any, Tuple  # noqa: UP035 (TorchScript reads Tuple)

import torch
from timm.layers import (
    Attention,
    DropPath,
    LayerScale,
    Mlp,
    calculate_drop_path_rates,
)
from torch import Tensor, nn

from efficient_vits import catalog
from efficient_vits._state import put
from efficient_vits.attention import check_heads
from efficient_vits.attention.efficient_modulation import GridModulation
from efficient_vits.models import efficient_vits
from efficient_vits.models._pyramid import Downsample, Pyramid, Stage


class ModulationBlock(nn.Module):
    """Efficient modulation with norm, LayerScale and shortcut.

    Args:
        dim: Channels.
        expansion: Width of the values, in multiples of `dim`.
        kernel_size: Rows and columns of the convolution; odd.
        init_values: Initial LayerScale; 0 leaves it out.
        drop_path: Probability of leaving out the modulation in training.

    Shape: tokens (B, H * W, dim) and their (H, W) -> the same tokens.
    """

    def __init__(
        self,
        dim: int,
        expansion: int,
        kernel_size: int,
        init_values: float,
        drop_path: float,
        **factory: Any,
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, **factory)
        self.mixer = GridModulation(dim, expansion=expansion, kernel_size=kernel_size, **factory)
        self.ls: nn.Module = nn.Identity()
        if init_values:
            self.ls = LayerScale(dim, init_values, **factory)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: Tensor, grid_size: Tuple[int, int]) -> Tensor:  # noqa: UP006
        y = self.mixer(self.norm(x).unflatten(1, grid_size)).flatten(1, 2)
        return x + self.drop_path(self.ls(y))

    @torch.jit.ignore
    def fuse(self) -> None:
        """Fold LayerScale into the output projection."""
        if isinstance(self.ls, LayerScale):
            with torch.no_grad():
                self.mixer.proj.weight.mul_(self.ls.gamma.unsqueeze(1))
                self.mixer.proj.bias.mul_(self.ls.gamma)
            self.ls = nn.Identity()


class AttentionBlock(nn.Module):
    """Transformer block, which has no use for the grid.

    Args:
        dim: Channels.
        num_heads: Heads.
        attn_dim: Channels of the attention, divisible by `num_heads`.
        mlp_ratio: Hidden channels of the MLP, in multiples of `dim`.
        drop_path: Probability of leaving out a residual branch in training.

    Shape: tokens (B, N, dim) and their grid -> the same tokens.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        attn_dim: int,
        mlp_ratio: float,
        drop_path: float,
        **factory: Any,
    ) -> None:
        super().__init__()
        check_heads("efficientmod", attn_dim, num_heads)
        self.norm1 = nn.LayerNorm(dim, **factory)
        self.attn = Attention(dim, num_heads, attn_head_dim=attn_dim // num_heads, **factory)
        self.norm2 = nn.LayerNorm(dim, **factory)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), **factory)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: Tensor, grid_size: Tuple[int, int]) -> Tensor:  # noqa: UP006
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class EfficientMod(Pyramid):
    """EfficientMod.

    Args:
        in_chans: Channels of the image.
        num_classes: Classes; 0 leaves the classifier out.
        global_pool: ``"avg"``, or ``""`` for none: the output is then a map.
        embed_dim: Channels of each stage.
        depths: Modulation blocks of each stage.
        attn_depths: Blocks of softmax attention after these.
        expansion: Width of the values in every second modulation block, in multiples of channels.
        attn_dims: Channels of each stage's attention, divisible by `num_heads`; None for those of
            the stage.
        attn_mlp_ratios: Hidden channels of each stage's MLPs, in multiples of its channels.
        num_heads: Heads of the attention.
        init_values: Initial LayerScale of the modulation; 0 leaves it out.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Probability of leaving out a residual branch of the last block in training;
            smaller in blocks before it.

    Shape: (B, in_chans, H, W) -> (B, num_classes).
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dim: Sequence[int] = (32, 64, 144, 312),
        depths: Sequence[int] = (4, 4, 8, 4),
        attn_depths: Sequence[int] = (0, 0, 4, 4),
        expansion: int = 6,
        attn_dims: Sequence[int] | None = None,
        attn_mlp_ratios: Sequence[float] = (4, 4, 4, 5),
        num_heads: int = 8,
        init_values: float = 1e-4,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        factory = {"device": device, "dtype": dtype}
        totals = [n + m for n, m in zip(depths, attn_depths, strict=True)]
        rates = iter(calculate_drop_path_rates(drop_path_rate, sum(totals)))
        stages = []
        for i, dim in enumerate(embed_dim):
            if i == 0:
                change = Downsample(in_chans, dim, kernel_size=7, stride=4, padding=3, **factory)
            else:
                change = Downsample(embed_dim[i - 1], dim, **factory)
            blocks: list[nn.Module] = [
                ModulationBlock(dim, (1, expansion)[j % 2], 7, init_values, next(rates), **factory)
                for j in range(depths[i])
            ]
            blocks += [
                AttentionBlock(
                    dim,
                    num_heads,
                    dim if attn_dims is None else attn_dims[i],
                    attn_mlp_ratios[i],
                    next(rates),
                    **factory,
                )
                for _ in range(attn_depths[i])
            ]
            stages.append(Stage(dim, change, blocks))
        super().__init__(
            stages,
            nn.LayerNorm(embed_dim[-1], **factory),
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            **factory,
        )
        self.init_weights()

    @staticmethod
    def from_reference(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The names of the authors' code, which are the benchmark's too, to ours."""
        context = ".mlp.context_layer."
        modulation = {name.split(context)[0] for name in state if context in name}
        out: dict[str, Tensor] = {}
        for name, value in state.items():
            if ".".join(name.split(".")[:4]) in modulation:
                for theirs, ours in MODULATION_NAMES.items():
                    name = name.replace(theirs, ours)
            # There, a change of grid belongs to the stage before it.
            change = re.match(r"layers\.(\d+)\.downsample\.", name)
            if change is not None:
                name = f"stages.{int(change[1]) + 1}.downsample.{name[change.end() :]}"
            name = re.sub(r"^patch_embed\.", "stages.0.downsample.", name)
            put(out, re.sub(r"^layers\.", "stages.", name), value)
        return out


MODULATION_NAMES = {
    ".gamma_1": ".ls.gamma",
    ".mlp.fc1.": ".mixer.v.",
    ".mlp.fc2.": ".mixer.proj.",
    ".mlp.context_layer.f.": ".mixer.f.",
    ".mlp.context_layer.g.": ".mixer.g.",
    ".mlp.context_layer.context_list.0.": ".mixer.conv.",
}

# As in the authors' code, where a head has 32 channels or more.
SIZES: dict[str, dict[str, Any]] = {
    "xxs": {
        "embed_dim": (32, 64, 128, 256),
        "attn_dims": (256, 256, 256, 256),
        "depths": (2, 2, 6, 2),
        "attn_depths": (0, 0, 1, 2),
        "attn_mlp_ratios": (4, 4, 4, 4),
    },
    "xs": {
        "embed_dim": (32, 64, 144, 288),
        "attn_dims": (256, 256, 256, 288),
        "depths": (3, 3, 4, 2),
        "attn_depths": (0, 0, 3, 3),
        "expansion": 4,
        "attn_mlp_ratios": (4, 4, 4, 4),
    },
    "s": {"attn_dims": (256, 256, 256, 312)},
}


def _merge(size: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    if "embed_dim" in arguments:
        # The attention's channels are those of the published widths.
        size = {name: value for name, value in size.items() if name != "attn_dims"}
    return {**size, **arguments}


for _size, _arguments in SIZES.items():
    efficient_vits.add_entry_point(
        f"efficientmod_{_size}",
        EfficientMod,
        doc=f"EfficientMod-{_size}.\n\nTakes all arguments of `EfficientMod`.",
        cfg={
            "pool_size": (7, 7),
            "first_conv": "stages.0.downsample.proj",
            "classifier": "head",
        },
        feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
        merge=functools.partial(_merge, _arguments),
    )
    catalog.derive(f"efficientmod_{_size}", axis="attention", relatives=["efficientmod_s"])
