r"""Linear attention: a product of features takes the place of the softmax.

    y_n = phi(q_n)^T (sum_m phi(k_m) v_m^T) / (phi(q_n)^T sum_m phi(k_m)),    phi(x) = elu(x) + 1

The cost is linear in tokens. With ``is_causal=True`` the sums run over m <= n.

Source: Katharopoulos et al., "Transformers are RNNs: Fast Autoregressive Transformers with Linear
Attention", ICML 2020 (arXiv 2006.16236), eq. 4-7; the causal form is eq. 8-12, its running sums
taken over chunks of tokens. Written anew; the authors' library is MIT and not used. As
there, queries and keys are not scaled and 1e-6 is added to the normaliser.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Dict, Final, Optional  # noqa: UP035 (TorchScript reads Dict)

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_function
from torch import Tensor, nn

from efficient_vits._numerics import widen, without_autocast
from efficient_vits.attention._interface import (
    AttentionTraits,
    check_heads,
    check_report,
    optional_norm,
    refuse_mask,
    register_attention,
)
from efficient_vits.attention._kernels import shares, weighted


@register_notrace_function
def elu_features(x: Tensor) -> Tensor:
    """elu(x) + 1, positive, in float32 at least.

    As two halves: elu(x) + 1 itself loses the small values, which cancel to zero from x = -17 on.
    """
    x = widen(x)
    return x.clamp(max=0).exp() + x.relu()


def _chunked(q: Tensor, k: Tensor, v: Tensor, eps: float, chunk: int) -> Tensor:
    B, heads, N, d = q.shape
    q, k, v = widen(q), widen(k), widen(v)
    # A channel of ones adds up to the normaliser.
    v = F.pad(v, [0, 1], value=1.0)
    padding = [0, 0, 0, (chunk - N % chunk) % chunk]
    q = F.pad(q, padding).reshape(B, heads, -1, chunk, d)
    k = F.pad(k, padding).reshape(B, heads, -1, chunk, d)
    v = F.pad(v, padding).reshape(B, heads, -1, chunk, v.shape[-1])
    context = (k.transpose(-2, -1) @ v).cumsum(dim=2)
    earlier = F.pad(context[:, :, :-1], [0, 0, 0, 0, 1, 0])
    within = (q @ k.transpose(-2, -1)).tril()  # (B, heads, N / chunk, chunk, chunk)
    y = (q @ earlier + within @ v).flatten(2, 3)[:, :, :N]
    return y[..., :-1] / (y[..., -1:] + eps)


@register_notrace_function
def kernel_attention(
    q: Tensor, k: Tensor, v: Tensor, is_causal: bool, eps: float = 1e-6, chunk: int = 64
) -> Tensor:
    """Each token takes the mean of the values, weighted by the products of features.

    Args:
        q: Features of the queries, none negative, (B, heads, N, features).
        k: Features of the keys, likewise.
        v: Values (B, heads, N, d).
        is_causal: The mean is over the tokens up to its own. All of it is in float32 at least,
            autocast or not: running sums outgrow half precision.
        eps: Added to the normaliser.
        chunk: Tokens of which causal attention looks at all pairs; earlier ones come as a sum.

    Returns:
        (B, heads, N, d), in the dtype of `v`.
    """
    if not is_causal:
        w, s = shares(q, k, eps)
        return weighted(w, s, v)
    if torch.jit.is_scripting():
        return _chunked(q, k, v, eps, chunk).to(v.dtype)
    with without_autocast(q.device.type):
        return _chunked(q, k, v, eps, chunk).to(v.dtype)


@register_attention("linear")
class LinearAttention(nn.Module):
    """Linear attention.

    Args:
        dim: Channels, divisible by `num_heads`.
        num_heads: Heads.
        attn_drop: Dropout on the values, as what each token contributes.
        report: ``("keys",)`` writes the keys before their feature map into ``info``.

    Shape: (B, N, dim) -> (B, N, dim). ``size`` (B, N, 1) weighs the keys; ``info["keys"]``
    (B, heads, N, d).
    """

    traits: ClassVar[AttentionTraits] = AttentionTraits(
        causal=True, token_sizes=True, gives=frozenset({"keys"})
    )
    reports_keys: Final[bool]

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
        report: Sequence[str] = (),
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        check_heads("linear attention", dim, num_heads)
        check_report("linear attention", report, self.traits.gives)
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.reports_keys = "keys" in report
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **factory)
        self.q_norm = optional_norm("linear", qk_norm, norm_layer, self.head_dim, **factory)
        self.k_norm = optional_norm("linear", qk_norm, norm_layer, self.head_dim, **factory)
        self.attn_drop = nn.Dropout(attn_drop)
        self.norm = optional_norm("linear", scale_norm, norm_layer, dim, **factory)
        self.proj = nn.Linear(dim, dim, bias=proj_bias, **factory)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(
        self,
        x: Tensor,
        attn_mask: Optional[Tensor] = None,
        is_causal: bool = False,
        size: Optional[Tensor] = None,
        info: Optional[Dict[str, Tensor]] = None,  # noqa: UP006
    ) -> Tensor:
        refuse_mask("linear attention", attn_mask, False)
        B, N, C = x.shape
        # (3, B, heads, N, d)
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        if info is not None and self.reports_keys:
            info["keys"] = k

        q, k, v = elu_features(q), elu_features(k), self.attn_drop(v)
        if size is not None:
            k = k * size.unsqueeze(1)  # (B, 1, N, 1)
        y = kernel_attention(q, k, v, is_causal)
        y = self.norm(y.transpose(1, 2).reshape(B, N, C))
        return self.proj_drop(self.proj(y))
