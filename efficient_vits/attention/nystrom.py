r"""Nyströmformer: the attention matrix is rebuilt from a few landmark tokens.

    y = softmax(Q L_k^T / sqrt(d)) A^+ softmax(L_q K^T / sqrt(d)) V + conv(V)
    A = softmax(L_q L_k^T / sqrt(d)),    L_q, L_k: means of Q and K over segments of tokens

The pseudo-inverse A^+ comes from an iteration. The cost is linear in tokens. The convolution runs
over tokens, one kernel per head, and is an option; without it, and with as many landmarks as
tokens, this is softmax attention.

Source: Xiong et al., "Nyströmformer: A Nyström-based Algorithm for Approximating Self-Attention",
AAAI 2021 (arXiv 2102.03902), algorithm 1 and the third-order iteration for the pseudo-inverse.
Written anew; the authors' code is Apache-2.0 and not used. The iteration starts at
``A^T / (|A|_1 |A|_inf)`` of each matrix, as there. Where tokens do not divide into segments, the
last ones are one token longer. The authors' image models, and with them the benchmark's runs, add
the values once more behind the output projection: ``value_skip``.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Dict, Final, Optional  # noqa: UP035 (TorchScript reads Dict)

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_function, use_fused_attn
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


@register_notrace_function
def segment_means(x: Tensor, segments: int) -> Tensor:
    """Tokens (B, heads, N, d) averaged over consecutive segments, (B, heads, min(segments, N), d).

    Segments have N // segments tokens, the last N % segments of them one more.
    """
    B, heads, N, d = x.shape
    if segments >= N:
        return x
    length, longer = N // segments, N % segments
    split = (segments - longer) * length
    means = x[:, :, :split].reshape(B, heads, segments - longer, length, d).mean(dim=3)
    if longer == 0:
        return means
    rest = x[:, :, split:].reshape(B, heads, longer, length + 1, d).mean(dim=3)
    return torch.cat([means, rest], dim=2)


def iterative_pinv(a: Tensor, steps: int) -> Tensor:
    """Approximate pseudo-inverse of matrices (..., m, m) whose rows sum to one, as a softmax's do.

    The columns of such a matrix sum to one on average, so that the largest of them is no zero.
    """
    identity = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    z = a.transpose(-2, -1) / a.sum(dim=-2).amax(dim=-1)[..., None, None]
    for _ in range(steps):
        az = a @ z
        z = 0.25 * (z @ (13 * identity - az @ (15 * identity - az @ (7 * identity - az))))
    return z


def _rebuilt(q: Tensor, k: Tensor, landmarks: Tensor, seen: Tensor, steps: int) -> Tensor:
    q, k = widen(q), widen(k).transpose(-2, -1)
    landmarks, seen = widen(landmarks), widen(seen)
    scale = q.shape[-1] ** -0.5
    a = ((landmarks * scale) @ k).softmax(dim=-1)  # (B, heads, m, m)
    # The pseudo-inverse has the large numbers: it meets the m landmarks before the N tokens do.
    return ((q * scale) @ k).softmax(dim=-1) @ (iterative_pinv(a, steps) @ seen)


@register_notrace_function
def from_landmarks(q: Tensor, k: Tensor, landmarks: Tensor, seen: Tensor, steps: int) -> Tensor:
    """What the tokens see, from what the landmarks see.

    In float32 at least, autocast or not: the pseudo-inverse magnifies rounding errors.

    Args:
        q: Queries (B, heads, N, d).
        k: Keys of the landmarks (B, heads, m, d).
        landmarks: Queries of the landmarks (B, heads, m, d).
        seen: The values that these attend to (B, heads, m, d).
        steps: Steps of the pseudo-inverse.

    Returns:
        (B, heads, N, d), in the dtype of `seen`.
    """
    if landmarks.shape[2] == q.shape[2]:
        return seen  # every token is its own landmark
    if torch.jit.is_scripting():
        return _rebuilt(q, k, landmarks, seen, steps).to(seen.dtype)
    with without_autocast(q.device.type):
        return _rebuilt(q, k, landmarks, seen, steps).to(seen.dtype)


@register_attention(
    "nystrom",
    models={
        "nystrom32_{size}": {"landmarks": 32, "value_skip": True},
        "nystrom64_{size}": {"landmarks": 64, "value_skip": True},
    },
)
class NystromAttention(nn.Module):
    """Nyström attention.

    Args:
        dim: Channels, divisible by `num_heads`.
        num_heads: Heads.
        attn_drop: Dropout on the attention that landmarks pay to tokens.
        landmarks: Landmarks; with as many tokens or fewer this is softmax attention.
        pinv_steps: Steps of the iteration that inverts.
        conv_size: Tokens under the convolution of the values, an odd number; None leaves it out.
        value_skip: Add the values to the output.
        report: ``("keys",)`` writes the keys into ``info``.

    Shape: (B, N, dim) -> (B, N, dim). ``info["keys"]`` (B, heads, N, d).

    Raises:
        ValueError: No landmarks, or `conv_size` even.
    """

    traits: ClassVar[AttentionTraits] = AttentionTraits(gives=frozenset({"keys"}))
    fused_attn: Final[bool]
    value_skip: Final[bool]
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
        landmarks: int = 64,
        pinv_steps: int = 6,
        conv_size: int | None = None,
        value_skip: bool = False,
        report: Sequence[str] = (),
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        check_heads("nystrom", dim, num_heads)
        check_report("nystrom", report, self.traits.gives)
        if landmarks < 1:
            raise ValueError(f"nystrom needs landmarks >= 1, got {landmarks}")
        if conv_size is not None and (conv_size < 1 or conv_size % 2 == 0):
            raise ValueError(f"nystrom needs an odd conv_size or None, got {conv_size}")
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.landmarks = landmarks
        self.pinv_steps = pinv_steps
        self.value_skip = value_skip
        self.fused_attn = use_fused_attn()
        self.reports_keys = "keys" in report
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **factory)
        self.q_norm = optional_norm("nystrom", qk_norm, norm_layer, self.head_dim, **factory)
        self.k_norm = optional_norm("nystrom", qk_norm, norm_layer, self.head_dim, **factory)
        self.attn_drop = nn.Dropout(attn_drop)
        self.conv: nn.Module | None = None
        if conv_size is not None:
            self.conv = nn.Conv2d(
                num_heads,
                num_heads,
                (conv_size, 1),
                padding=(conv_size // 2, 0),
                groups=num_heads,
                bias=False,
                **factory,
            )
        self.norm = optional_norm("nystrom", scale_norm, norm_layer, dim, **factory)
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
        refuse_mask("nystrom", attn_mask, is_causal)
        if size is not None:
            raise ValueError("nystrom does not take token sizes; pass size=None")
        B, N, C = x.shape
        # (3, B, heads, N, d)
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        if info is not None and self.reports_keys:
            info["keys"] = k

        landmarks_q, landmarks_k = (
            segment_means(q, self.landmarks),
            segment_means(k, self.landmarks),
        )
        if self.fused_attn:
            p = self.attn_drop.p if self.training else 0.0
            seen = F.scaled_dot_product_attention(landmarks_q, k, v, dropout_p=p)
        else:
            weights = (landmarks_q * self.head_dim**-0.5) @ k.transpose(-2, -1)
            seen = self.attn_drop(weights.softmax(dim=-1)) @ v
        y = from_landmarks(q, landmarks_k, landmarks_q, seen, self.pinv_steps)
        if self.conv is not None:
            y = y + self.conv(v)
        y = self.norm(y.transpose(1, 2).reshape(B, N, C))
        y = self.proj_drop(self.proj(y))
        if self.value_skip:
            y = y + v.transpose(1, 2).reshape(B, N, C)
        return y
