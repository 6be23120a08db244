r"""EMSA, efficient multi-head self-attention: few keys, and heads that interact.

    y = W IN(softmax(sum_h c_gh q_h k_h^T / sqrt(d) + b_g)) v_g,    k, v = W_k,v LN(dw_s(x))

dw_s is a depth-wise convolution of stride s and kernel s + 1 over the grid of patches, which leaves
1 / s^2 of the keys. What it takes from the heads' diversity a 1x1 convolution c over the heads
of the logits gives back, with an instance norm IN over each head's N x M weights.

Source: Zhang and Yang, "ResT: An Efficient Transformer for Visual Recognition", NeurIPS 2021 (arXiv
2105.13677), section 3. Written anew (the authors' code is Apache-2.0). As there, a single head has
neither convolution nor instance norm.
"""

from typing import Any, ClassVar, Optional, Tuple  # noqa: UP035 (TorchScript reads Tuple)

import torch
from timm.layers import LayerNorm
from torch import Tensor, nn

from efficient_vits._numerics import widen
from efficient_vits.attention._grid import at_least_as_wide, to_image, to_tokens
from efficient_vits.attention._interface import (
    AttentionTraits,
    check_heads,
    refuse_mask,
    register_attention,
)
from efficient_vits.catalog import Paper

EPS = 1e-5  # of both norms


def instance_norm(weights: Tensor, eps: float = EPS) -> Tensor:
    """Every head's weights (B, heads, N, M) at mean 0 and variance 1; a single weight becomes 0.

    torch's instance norm refuses a single weight in training.
    """
    centred = weights - weights.mean(dim=(2, 3), keepdim=True)
    return centred * (centred.square().mean(dim=(2, 3), keepdim=True) + eps).rsqrt()


@register_attention(
    "emsa",
    vit={"class_token": False, "global_pool": "avg"},
    paper=Paper(
        title="ResT: An Efficient Transformer for Visual Recognition",
        first_author="Zhang",
        venue="NeurIPS 2021",
        year=2021,
        arxiv="2105.13677",
    ),
)
class EmsaAttention(nn.Module):
    """Self-attention with spatially reduced keys and values, and interacting heads.

    Args:
        dim: Channels, divisible by `num_heads`.
        num_heads: Heads.
        attn_drop: Dropout on the weights, after the instance norm.
        grid_size: Rows and columns of patch tokens; a call may give its own.
        num_prefix_tokens: Tokens in front of them, which pass by as they are. A class token never
            sees the patches; pool these instead.
        sr_ratio: Rows and columns of patches per key; 1 leaves all.

    Shape: (B, P + H * W, dim) -> the same.

    Raises:
        ValueError: Heads or reduction that do not fit.
    """

    traits: ClassVar[AttentionTraits] = AttentionTraits(
        grid=True, mixes_prefix=False, refuses=frozenset({"qk_norm", "scale_norm"})
    )

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        *,
        grid_size: tuple[int, int] | None = None,
        num_prefix_tokens: int = 1,
        sr_ratio: int = 2,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_heads("emsa", dim, num_heads)
        if sr_ratio != 1 and (sr_ratio < 1 or sr_ratio % 2):
            # The padding of an odd stride would leave no key to a small grid.
            raise ValueError(f"emsa needs a sr_ratio of 1 or an even one, got {sr_ratio}")
        factory = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.scale = self.head_dim**-0.5
        self.grid_size = grid_size or (0, 0)
        self.num_prefix_tokens = num_prefix_tokens
        self.sr_ratio = sr_ratio
        self.sr: nn.Module | None = None
        self.sr_norm: nn.Module | None = None
        if sr_ratio > 1:
            self.sr = nn.Conv2d(
                dim, dim, sr_ratio + 1, sr_ratio, padding=sr_ratio // 2, groups=dim, **factory
            )
            self.sr_norm = LayerNorm(dim, eps=EPS, **factory)
        self.q = nn.Linear(dim, dim, bias=qkv_bias, **factory)
        self.kv = nn.Linear(dim, 2 * dim, bias=qkv_bias, **factory)
        self.interaction: nn.Module | None = None
        if num_heads > 1:
            self.interaction = nn.Conv2d(num_heads, num_heads, 1, **factory)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim, bias=proj_bias, **factory)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(
        self,
        x: Tensor,
        attn_mask: Optional[Tensor] = None,
        is_causal: bool = False,
        grid_size: Optional[Tuple[int, int]] = None,  # noqa: UP006
    ) -> Tensor:
        refuse_mask("emsa", attn_mask, is_causal)
        B, N, C = x.shape
        H, W = self.grid_size if grid_size is None else grid_size
        P = self.num_prefix_tokens
        torch._assert(
            N == P + H * W, "emsa got another number of tokens than its grid has; set_grid_size"
        )
        prefix, patches = x[:, :P], x[:, P:]
        q = self.q(patches).reshape(B, H * W, self.num_heads, self.head_dim).transpose(1, 2)
        if self.sr is not None and self.sr_norm is not None:
            image = at_least_as_wide(to_image(patches, H, W), self.sr_ratio)
            patches = self.sr_norm(to_tokens(self.sr(image)))
        kv = self.kv(patches).reshape(B, -1, 2, self.num_heads, self.head_dim)
        k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, heads, M, d)

        weights = (q * self.scale) @ k.transpose(-2, -1)
        if self.interaction is not None:
            weights = instance_norm(widen(self.interaction(weights)).softmax(dim=-1))
        else:
            weights = widen(weights).softmax(dim=-1)
        y = self.attn_drop(weights.to(v.dtype)) @ v
        y = self.proj_drop(self.proj(y.transpose(1, 2).reshape(B, H * W, C)))
        return torch.cat([prefix, y], dim=1) if P > 0 else y

    @torch.jit.ignore
    def set_grid_size(self, grid_size: tuple[int, int]) -> None:
        """Work on another grid; the parameters are the same for all."""
        self.grid_size = (int(grid_size[0]), int(grid_size[1]))
