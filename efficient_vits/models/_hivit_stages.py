"""Stages of HiViT: MLPs on a map, and a ViT with absolute and relative positions.

See `efficient_vits.models.hivit` for the network and its source.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp, RelPosBias, resample_abs_pos_embed
from timm.models import checkpoint_seq
from torch import Tensor, nn


def resample_bias(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Biases of all displacements on one grid, brought to another, bicubic in float32.

    Args:
        table: ((2 H - 1) (2 W - 1), heads), row displacements first.
        old: Rows H and columns W of the grid that it is for.
        new: Those of the other grid.
    """
    if tuple(old) == tuple(new):
        return table
    image = table.float().t().reshape(1, table.shape[1], 2 * old[0] - 1, 2 * old[1] - 1)
    image = F.interpolate(image, size=(2 * new[0] - 1, 2 * new[1] - 1), mode="bicubic")
    return image.flatten(2)[0].t().contiguous().to(table.dtype)


class MlpBlock(nn.Module):
    """``x + mlp(norm x)``, (B, H, W, C) -> the same."""

    def __init__(
        self,
        dim: int,
        mlp_ratio: float,
        proj_drop: float,
        drop_path: float,
        norm_layer: Any,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.norm = norm_layer(dim, **factory)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=proj_drop, **factory)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.mlp(self.norm(x)))


class MlpStage(nn.Module):
    """What merges patches, and MLP blocks: (B, H, W, C) -> (B, H / 2, W / 2, 2 C).

    Args:
        downsample: The merger; the identity keeps the size.
        blocks: The blocks.
    """

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(self.blocks, x)
        return self.blocks(x)


class ViTStage(MlpStage):
    """A merger, positions, and the blocks of a ViT: (B, H, W, C) -> (B, H / 2, W / 2, 2 C).

    Args:
        downsample: The merger.
        blocks: timm's `RelPosBlock` with `RelPosBias`.
        dim: Channels of the output.
        grid_size: Rows and columns of the output.
    """

    def __init__(
        self,
        downsample: nn.Module,
        blocks: Sequence[nn.Module],
        dim: int,
        grid_size: tuple[int, int],
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(downsample, blocks)
        self.grid_size = grid_size
        tokens = grid_size[0] * grid_size[1]
        self.pos_embed = nn.Parameter(torch.empty(1, tokens, dim, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        B, H, W, C = x.shape
        x = x.reshape(B, H * W, C) + self.pos_embed
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x = checkpoint_seq(self.blocks, x)
        else:
            x = self.blocks(x)
        return x.reshape(B, H, W, C)

    @torch.jit.ignore
    def set_grid_size(self, grid_size: tuple[int, int]) -> None:
        """Resample absolute and relative positions to another grid."""
        old, self.grid_size = self.grid_size, grid_size
        if grid_size == old:
            return
        with torch.no_grad():
            embedding = resample_abs_pos_embed(
                self.pos_embed, list(grid_size), list(old), num_prefix_tokens=0
            )
        self.pos_embed = nn.Parameter(embedding, requires_grad=self.pos_embed.requires_grad)
        block: Any
        for block in self.blocks:
            table = block.attn.rel_pos.relative_position_bias_table
            bias = RelPosBias(grid_size, table.shape[1], device=table.device, dtype=table.dtype)
            bias.relative_position_bias_table = nn.Parameter(
                resample_bias(table.detach(), old, grid_size), requires_grad=table.requires_grad
            )
            block.attn.rel_pos = bias

    @torch.jit.ignore
    def resample_parameter(self, name: str, value: Tensor) -> Tensor:
        """Positions of another, square, grid brought to this one."""
        if name == "pos_embed" and value.ndim == 3 and value.numel():
            side = math.isqrt(value.shape[1])
            if side**2 == value.shape[1]:
                return resample_abs_pos_embed(
                    value, list(self.grid_size), [side, side], num_prefix_tokens=0
                )
        elif name.endswith("relative_position_bias_table") and value.ndim == 2 and value.numel():
            side = math.isqrt(value.shape[0])
            if side**2 == value.shape[0] and side % 2:
                return resample_bias(value, ((side + 1) // 2,) * 2, self.grid_size)
        return value
