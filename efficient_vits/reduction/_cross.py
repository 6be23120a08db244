"""A transformer layer whose queries are other tokens than its keys, to summarise these."""

from typing import Any, Final, Optional, Tuple  # noqa: UP035 (TorchScript reads them)

from timm.layers import DropPath, LayerNorm, LayerScale, Mlp, use_fused_attn
from torch import Tensor, nn
from torch.nn import functional as F


class CrossAttention(nn.Module):
    """Softmax attention of n tokens to N others, x (B, n, dim), context (B, N, dim) -> (B, n, dim).

    Args:
        dim: Channels.
        num_heads: Heads, a divisor of `dim`.
        qkv_bias: Whether queries, keys and values have a bias.
        attn_drop: Dropout of the attention.
        proj_drop: Dropout of the output.
    """

    fused_attn: Final[bool]

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"{dim} channels cannot be split into {num_heads} heads")
        factory = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.fused_attn = use_fused_attn()
        self.q = nn.Linear(dim, dim, bias=qkv_bias, **factory)
        self.kv = nn.Linear(dim, 2 * dim, bias=qkv_bias, **factory)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim, **factory)
        self.proj_drop = nn.Dropout(proj_drop)

    def heads(self, x: Tensor, context: Tensor) -> Tuple[Tensor, Tensor, Tensor]:  # noqa: UP006
        """Queries (B, heads, n, d), keys and values (B, heads, N, d)."""
        B, n, C = x.shape
        d = C // self.num_heads
        q = self.q(x).reshape(B, n, self.num_heads, d).transpose(1, 2)
        kv = self.kv(context).reshape(B, context.shape[1], 2, self.num_heads, d)
        k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def weights(self, x: Tensor, context: Tensor) -> Tensor:
        """Attention of x to the context, averaged over heads, (B, n, N)."""
        q, k, _ = self.heads(x, context)
        return ((q * self.scale) @ k.transpose(-2, -1)).softmax(dim=-1).mean(dim=1)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        q, k, v = self.heads(x, context)
        if self.fused_attn:
            y = F.scaled_dot_product_attention(
                q, k, v, dropout_p=self.attn_drop.p if self.training else 0.0
            )
        else:
            y = self.attn_drop(((q * self.scale) @ k.transpose(-2, -1)).softmax(dim=-1)) @ v
        return self.proj_drop(self.proj(y.transpose(1, 2).flatten(2)))


class CrossLayer(nn.Module):
    """Pre-norm transformer layer from a context, x (B, n, dim), context (B, N, dim) -> (B, n, dim).

    Args:
        dim: Channels.
        num_heads: Heads.
        mlp_ratio: Hidden channels of the MLP over `dim`.
        init_values: Initial LayerScale; none without.
        skip: Whether x goes around the attention too, or only around the MLP.

    The other arguments are those of timm's `Block`.
    """

    skip: Final[bool]

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        proj_drop: float = 0.0,
        attn_drop: float = 0.0,
        init_values: Optional[float] = None,
        drop_path: float = 0.0,
        norm_layer: Any = LayerNorm,
        skip: bool = True,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.skip = skip
        self.norm1 = norm_layer(dim, **factory)
        self.attn = CrossAttention(dim, num_heads, qkv_bias, attn_drop, proj_drop, **factory)
        self.ls1 = LayerScale(dim, init_values, **factory) if init_values else nn.Identity()
        self.drop_path1 = DropPath(drop_path) if drop_path and skip else nn.Identity()
        self.norm2 = norm_layer(dim, **factory)
        self.mlp = Mlp(dim, int(mlp_ratio * dim), drop=proj_drop, **factory)
        self.ls2 = LayerScale(dim, init_values, **factory) if init_values else nn.Identity()
        self.drop_path2 = DropPath(drop_path) if drop_path else nn.Identity()

    def weights(self, x: Tensor, context: Tensor) -> Tensor:
        """How much each of the n tokens takes from each of the N, (B, n, N)."""
        return self.attn.weights(self.norm1(x), self.norm1(context))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        y = self.ls1(self.attn(self.norm1(x), self.norm1(context)))
        if self.skip:
            y = x + self.drop_path1(y)
        return y + self.drop_path2(self.ls2(self.mlp(self.norm2(y))))
