r"""Focal modulation: each token is multiplied by what its gates let through of growing contexts.

    y_n = W (q_n * h(sum_l g_n^l z_n^l)),
    z^l = gelu(DWConv_l(z^(l-1))),    z^(L+1) = gelu(mean z^L)

Queries q, the context z^0 and the L + 1 gates of each token come from one linear layer. The
depth-wise convolutions grow by 2 from level to level; the last context is global.

Source: Yang et al., "Focal Modulation Networks", NeurIPS 2022 (arXiv 2203.11926), section 3. The
modulation is timm's `FocalModulation` (the authors' code is MIT). It multiplies three linear maps
of a token, which overflows float16: under autocast it keeps the dtype of its weights. Prefix tokens
pass by as they are: they have no place in the grid.
"""

from typing import Any, ClassVar, Optional

import torch
from timm.layers import register_notrace_module
from timm.models.focalnet import FocalModulation
from torch import Tensor, nn

from efficient_vits._numerics import without_autocast
from efficient_vits.attention._interface import AttentionTraits, refuse_mask, register_attention
from efficient_vits.catalog import Paper


@register_notrace_module  # tracing cannot follow the context that turns autocast off
@register_attention(
    "focal",
    vit={"class_token": False, "global_pool": "avg"},
    paper=Paper(
        title="Focal Modulation Networks",
        first_author="Yang",
        venue="NeurIPS 2022",
        year=2022,
        arxiv="2203.11926",
    ),
)
class FocalAttention(nn.Module):
    """Focal modulation.

    Args:
        dim: Channels.
        num_heads: Part of the interface; every channel has contexts of its own.
        qkv_bias: Biases of the layer that gives queries, context and gates, and of h.
        qk_norm: Refused, as are `scale_norm` and `attn_drop`: there are no keys and no weights.
        grid_size: Rows and columns of patch tokens; required.
        num_prefix_tokens: Tokens in front of them, which pass by. A class token never sees the
            patches; pool these instead.
        focal_window: Kernel of the first level; odd.
        focal_level: Levels L; 2 as in the benchmark's models, the paper's large ones have 3.
        normalize_modulator: Divide the sum of contexts by their number.

    Shape: (B, P + H * W, dim) -> the same.

    Raises:
        ValueError: No grid, or an option out of its range.
    """

    traits: ClassVar[AttentionTraits] = AttentionTraits(
        grid=True, mixes_prefix=False, refuses=frozenset({"qk_norm", "scale_norm"})
    )

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
        focal_window: int = 3,
        focal_level: int = 2,
        normalize_modulator: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if qk_norm or scale_norm or attn_drop:
            raise ValueError(
                "focal has no keys to norm and no weights to drop; qk_norm and scale_norm must be "
                f"False and attn_drop 0, got {qk_norm=}, {scale_norm=}, {attn_drop=}"
            )
        if focal_window < 1 or focal_window % 2 == 0 or focal_level < 1:
            raise ValueError(
                f"focal needs an odd focal_window and focal_level >= 1, got {focal_window=}, "
                f"{focal_level=}"
            )
        if grid_size is None:
            raise ValueError("focal convolves over the grid of patches; needs grid_size, got None")
        factory = {"device": device, "dtype": dtype}
        self.grid_size = grid_size
        self.num_prefix_tokens = num_prefix_tokens
        self.modulation = FocalModulation(
            dim,
            focal_window=focal_window,
            focal_level=focal_level,
            bias=qkv_bias,
            normalize_modulator=normalize_modulator,
            proj_drop=proj_drop,
            **factory,
        )
        if not proj_bias:
            self.modulation.proj = nn.Conv2d(dim, dim, 1, bias=False, **factory)

    def forward(
        self, x: Tensor, attn_mask: Optional[Tensor] = None, is_causal: bool = False
    ) -> Tensor:
        refuse_mask("focal", attn_mask, is_causal)
        B, N, C = x.shape
        P, (H, W) = self.num_prefix_tokens, self.grid_size
        torch._assert(
            N == P + H * W, "focal got another number of tokens than its grid has; set_grid_size"
        )
        patches = x[:, P:].transpose(1, 2).reshape(B, C, H, W).to(self.modulation.h.weight.dtype)
        if torch.jit.is_scripting():
            y = self.modulation(patches)
        else:
            with without_autocast(x.device.type):
                y = self.modulation(patches)
        return torch.cat([x[:, :P], y.flatten(2).transpose(1, 2).to(x.dtype)], dim=1)

    @torch.jit.ignore
    def set_grid_size(self, grid_size: tuple[int, int]) -> None:
        """Work on another grid; the parameters are the same for all."""
        self.grid_size = grid_size
