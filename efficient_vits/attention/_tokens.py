"""Parameters with one entry per token, moved from one grid of patches to another."""

import math

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor

Grid = tuple[int, int]


def resample_tokens(
    value: Tensor, old: Grid, new: Grid, num_prefix_tokens: int, dim: int = -1
) -> Tensor:
    """Interpolate `value` over the grid along `dim`; entries of prefix tokens stay as they are.

    Args:
        value: Any shape with P + H * W entries along `dim`.
        old: H, W of those entries.
        new: H', W' of the result's.
        num_prefix_tokens: P.
        dim: The axis of tokens.
    """
    if tuple(old) == tuple(new):
        return value
    rows = value.movedim(dim, 0)  # (P + H * W, ...)
    prefix, patches = rows[:num_prefix_tokens], rows[num_prefix_tokens:]
    flat = patches.reshape(1, old[0] * old[1], -1)
    flat = resample_abs_pos_embed(flat, list(new), list(old), num_prefix_tokens=0)
    patches = flat.reshape(new[0] * new[1], *rows.shape[1:])
    return torch.cat([prefix, patches]).movedim(0, dim).contiguous()


def square_grid(num_tokens: int, num_prefix_tokens: int) -> Grid | None:
    """The square grid of so many tokens; None where there is none."""
    patches = num_tokens - num_prefix_tokens
    side = math.isqrt(max(patches, 0))
    return (side, side) if side and side**2 == patches else None
