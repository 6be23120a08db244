r"""What attention with a kernel instead of the softmax has in common.

    y_n = sum_m phi(q_n).phi(k_m) v_m / sum_m phi(q_n).phi(k_m)

Sums over tokens outgrow half precision. The two factors that `shares` makes of the features do not:
every entry lies between 0 and 1, and the context between them is a mean of values, whatever the
number of tokens.
"""

from typing import Tuple  # noqa: UP035 (TorchScript reads it)

from timm.layers import register_notrace_function
from torch import Tensor

from efficient_vits._numerics import widen


@register_notrace_function
def shares(q: Tensor, k: Tensor, eps: float) -> Tuple[Tensor, Tensor]:  # noqa: UP006
    """Factors w, s with  w_n.s_m = q_n.k_m / (sum_m q_n.k_m + eps), in float32 at least.

    s_m is the part of a feature that token m has of all tokens, w_n the weights by which query n
    takes the features: s sums to one over tokens, w over features.

    Args:
        q: Features of the queries, none negative, (B, heads, N, features).
        k: Features of the keys, likewise.
        eps: Added to the normaliser; may be zero where the features are positive.
    """
    q, k = widen(q), widen(k)
    total = k.sum(dim=2, keepdim=True)  # (B, heads, 1, features)
    # Any positive scale cancels; this one keeps both factors small, and has no gradient.
    scale = total.detach().clamp(min=1e-6)
    normaliser = (q * total).sum(dim=-1, keepdim=True) + eps
    return q * scale / normaliser, k / scale


def weighted(w: Tensor, s: Tensor, v: Tensor) -> Tensor:
    """Values (B, heads, N, d) mixed by the two factors, in the values' dtype."""
    context = s.to(v.dtype).transpose(-2, -1) @ v  # (B, heads, features, d)
    return w.to(v.dtype) @ context
