r"""Global filter: every frequency of every channel is multiplied by a learned complex number.

    y = F^-1(K * F(x))

This is a circular convolution with a kernel as large as the grid, at a cost of N log N.

Source: Rao et al., "Global Filter Networks for Image Classification", NeurIPS 2021 (arXiv
2107.00645), section 3.2. Written anew; the authors' code is MIT. Their block has one
skip connection, around filter and MLP together, and so have the models here. Filters of another
resolution are interpolated at equal frequencies, where the authors' code aligns array indices.
"""

from typing import Any, ClassVar, Final, Optional

import torch
from timm.layers import is_exportable, register_notrace_function
from torch import Tensor, nn

from efficient_vits._numerics import without_autocast
from efficient_vits.attention._fourier import (
    checked_grid,
    from_modes,
    refuse_arguments,
    to_modes,
    widened,
)
from efficient_vits.attention._interface import AttentionTraits, refuse_mask, register_attention

# The paper's isotropic models. The filter has no heads; other mixers at these sizes have.
SIZES = {
    "ti": {"embed_dim": 256, "depth": 12, "num_heads": 4},
    "xs": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "s": {"embed_dim": 384, "depth": 19, "num_heads": 6},
    "b": {"embed_dim": 512, "depth": 19, "num_heads": 8},
}


def filtered(x: Tensor, weight: Tensor, products: bool) -> Tensor:
    """Multiply the modes of `x` by a filter.

    Args:
        x: (B, H, W, C), float32 or float64.
        weight: Real and imaginary parts (H, W // 2 + 1, C, 2), in the dtype of `x`.
        products: Use matrix products instead of the FFT, and real numbers only.
    """
    modes = to_modes(x, products)
    if products:
        (re, im), (a, b) = modes.unbind(-1), weight.unbind(-1)
        modes = torch.stack([re * a - im * b, re * b + im * a], dim=-1)
    else:
        z = torch.view_as_complex(modes) * torch.view_as_complex(weight)
        modes = torch.view_as_real(z)
    return from_modes(modes, x.shape[2], products)


@register_notrace_function
def global_filter(x: Tensor, weight: Tensor, products: bool) -> Tensor:
    """`filtered` in float32 at least, whatever autocast says."""
    wide = widened(x)
    if torch.jit.is_scripting():
        return filtered(wide, weight.to(wide.dtype), products).to(x.dtype)
    with without_autocast(x.device.type):
        return filtered(wide, weight.to(wide.dtype), products).to(x.dtype)


def blend(old: int, new: int, scale: float, periodic: bool, like: Tensor) -> Tensor:
    """Weights (new, old) of linear interpolation at the points 0, scale, 2 scale, ...

    Beyond the last of the old points lies the first again (`periodic`) or the last.
    """
    at = torch.arange(new, dtype=torch.float64) * scale
    low = at.floor()
    share = at - low
    if periodic:
        below, above = low.long() % old, (low.long() + 1) % old
    else:
        below, above = low.long().clamp(max=old - 1), (low.long() + 1).clamp(max=old - 1)
    eye = torch.eye(old, dtype=torch.float64)
    weights = (1 - share).unsqueeze(1) * eye[below] + share.unsqueeze(1) * eye[above]
    return weights.to(device=like.device, dtype=like.dtype)


@register_attention(
    "gfnet",
    vit={"class_token": False, "init_values": None, "global_pool": "avg", "fc_norm": False},
    sizes=SIZES,
)
class GlobalFilterAttention(nn.Module):
    """The global filter layer of GFNet.

    Args:
        dim: Channels.
        num_heads: Part of the interface, as are `qkv_bias` and `proj_bias`: there is nothing here
            that has heads or biases.
        qk_norm: Refused, as are `scale_norm` and `attn_drop`: there is nothing to norm or drop.
        proj_drop: Dropout on the output.
        grid_size: Rows and columns of patch tokens; required.
        num_prefix_tokens: Tokens in front of them, which pass by as they are. A class token never
            sees the patches; pool these instead.

    Shape: (B, P + H * W, dim) -> the same.

    Raises:
        ValueError: No grid.
    """

    traits: ClassVar[AttentionTraits] = AttentionTraits(
        token_count=True,
        grid=True,
        mixes_prefix=False,
        residual=False,
        refuses=frozenset({"qk_norm", "scale_norm"}),
    )
    products: Final[bool]

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        proj_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        norm_layer: type[nn.Module] | None = None,
        scale_norm: bool = False,
        *,
        grid_size: tuple[int, int] | None = None,
        num_prefix_tokens: int = 1,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        refuse_arguments("gfnet", qk_norm, scale_norm, attn_drop)
        self.grid_size = checked_grid("gfnet", grid_size)
        self.num_prefix_tokens = num_prefix_tokens
        self.products = is_exportable()
        height, width = self.grid_size
        self.complex_weight = nn.Parameter(
            torch.empty(height, width // 2 + 1, dim, 2, device=device, dtype=dtype)
        )
        self.proj_drop = nn.Dropout(proj_drop)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the filter anew: real and imaginary parts normal, of width 0.02."""
        nn.init.normal_(self.complex_weight, std=0.02)

    def forward(
        self, x: Tensor, attn_mask: Optional[Tensor] = None, is_causal: bool = False
    ) -> Tensor:
        refuse_mask("gfnet", attn_mask, is_causal)
        B, N, C = x.shape
        H, W = self.grid_size
        P = self.num_prefix_tokens
        torch._assert(
            N == P + H * W,
            "gfnet got another number of tokens than its filter is for; set_grid_size",
        )
        y = global_filter(x[:, P:].reshape(B, H, W, C), self.complex_weight, self.products)
        y = torch.cat([x[:, :P], y.reshape(B, H * W, C)], dim=1)
        return self.proj_drop(y)

    @torch.jit.ignore
    def set_grid_size(self, grid_size: tuple[int, int]) -> None:
        """Resample the filter to another grid."""
        old, old_size = self.complex_weight, self.grid_size
        self.grid_size = checked_grid("gfnet", grid_size)
        new = self._resample(old.detach(), old_size)
        self.complex_weight = nn.Parameter(new, requires_grad=old.requires_grad)

    @torch.jit.ignore
    def resample_parameter(self, name: str, value: Tensor) -> Tensor:
        """A filter (H', V', C, 2) of another, square, grid brought to this one's."""
        if name != "complex_weight" or value.ndim != 4 or not value.numel():
            return value
        side = value.shape[0]
        if value.shape[1] != side // 2 + 1:
            return value
        return self._resample(value, (side, side))

    def _resample(self, value: Tensor, old_size: tuple[int, int]) -> Tensor:
        """(H', V', C, 2) over `old_size` to (H, V, C, 2), linearly at the same frequencies.

        Row i stands for i / H waves per token, whatever the grid. So an image tiled 2 x 2 is
        filtered on a grid of twice the size as its tile is on the old one.
        """
        if tuple(old_size) == self.grid_size:
            return value
        (old_height, old_width), (height, width) = old_size, self.grid_size
        rows = blend(old_height, height, old_height / height, True, value)
        columns = blend(value.shape[1], width // 2 + 1, old_width / width, False, value)
        return torch.einsum("hi,vj,ijcs->hvcs", rows, columns, value)
