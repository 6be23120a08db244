r"""Sparse Sinkhorn attention: each bucket of tokens attends to itself and to one sorted to it.

    R = S((scores + gumbel) / tau),    scores_uv = mean(q in u) . mean(k in v) / sqrt(d)
    y_u = softmax(q_u [k_u; (R k)_u]^T / sqrt(d)) [v_u; (R v)_u]

Tokens lie in buckets of equal size, u and v count them. S is Sinkhorn normalisation: rows and
columns of exp(.) are normalised in turn, so that R tends to a permutation of the buckets. With
``sort="topk"`` each bucket gets the best-scored ones, weighted by the softmax of the scores.

Source: Tay et al., "Sparse Sinkhorn Attention", ICML 2020 (arXiv 2002.11296), section 3.
Written anew. Differences: scores are dot products of mean queries and keys, as in the
benchmark's runs, where the paper learns a sorting network whose size is the number of buckets;
the Gumbel noise is there in training only; prefix tokens belong to no bucket: they attend to
everything, and every bucket attends to them too. "topk" comes from the library by Phil Wang (MIT)
that the benchmark used, which names it "non-permutative". That library also passes sorted keys
where the paper has sorted values; `keys_as_values` does the same, for weights from there.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Dict, Final, Optional, Tuple  # noqa: UP035 (TorchScript)

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_function, use_fused_attn
from torch import Tensor, nn

from efficient_vits._numerics import without_autocast
from efficient_vits._state import put, rename
from efficient_vits.attention._interface import (
    AttentionTraits,
    check_heads,
    check_report,
    optional_norm,
    refuse_mask,
    register_attention,
)


def bucket_size(n: int, at_most: int) -> int:
    """The largest divisor of `n` up to a bound; 1 where there is no other."""
    for size in range(min(n, at_most), 0, -1):
        if n % size == 0:
            return size
    return 1


def sinkhorn(logits: Tensor, iterations: int) -> Tensor:
    """Normalise rows and columns of exp(logits) (..., U, U) in turn, columns last."""
    for _ in range(iterations):
        logits = logits - logits.logsumexp(dim=-1, keepdim=True)
        logits = logits - logits.logsumexp(dim=-2, keepdim=True)
    return logits.exp()


def gumbel_noise(like: Tensor) -> Tensor:
    """Standard Gumbel noise in the shape of `like`."""
    return -torch.empty_like(like).exponential_().clamp(min=1e-20).log()


def _scores(q: Tensor, k: Tensor) -> Tensor:
    if q.dtype != torch.float64:
        q, k = q.float(), k.float()
    return (q.mean(dim=3) * q.shape[-1] ** -0.5) @ k.mean(dim=3).transpose(-2, -1)


def bucket_scores(q: Tensor, k: Tensor) -> Tensor:
    """How well buckets fit, (B, heads, U, b, d) twice -> (B, heads, U, U), in float32 at least."""
    if torch.jit.is_scripting():
        return _scores(q, k)
    with without_autocast(q.device.type):
        return _scores(q, k)


@register_notrace_function
def in_buckets(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    max_bucket: int,
    n_top: int,
    iterations: int,
    temperature: float,
    noise: bool,
    keys_as_values: bool,
) -> Tuple[Tensor, Tensor, Tensor]:  # noqa: UP006
    """Queries in their buckets, and the keys and values that each bucket attends to.

    Args:
        q: Queries (B, heads, N, d); keys and values alike.
        max_bucket: Upper bound of the bucket size b, the largest divisor of N below it.
        n_top: Buckets to choose for each; 0 sorts by Sinkhorn normalisation.
        iterations: Sinkhorn normalisations.
        temperature: Of the Sinkhorn normalisation.
        noise: Add Gumbel noise to what is normalised.
        keys_as_values: Sorted keys take the place of sorted values.

    Returns:
        (B, heads, U, b, d), then twice (B, heads, U, (1 + T) b, d), with T sorted buckets.
    """
    B, H, N, d = q.shape
    b = bucket_size(N, max_bucket)
    U = N // b
    q, k, v = q.reshape(B, H, U, b, d), k.reshape(B, H, U, b, d), v.reshape(B, H, U, b, d)
    scores = bucket_scores(q, k)
    kv = k if keys_as_values else torch.cat([k, v], dim=-1)
    c = kv.shape[-1]  # d or 2 d
    kv = kv.reshape(B, H, U, b * c)
    if n_top > 0:
        T = min(n_top, U)
        weight, index = scores.softmax(dim=-1).topk(T, dim=-1)  # (B, heads, U, T)
        index = index.reshape(B, H, U * T, 1).expand(B, H, U * T, b * c)
        kv = kv.gather(2, index) * weight.to(kv.dtype).reshape(B, H, U * T, 1)
    else:
        T = 1
        if noise:
            scores = scores + gumbel_noise(scores)
        kv = sinkhorn(scores / temperature, iterations).to(kv.dtype) @ kv
    kv = kv.reshape(B, H, U, T * b, c)
    return q, torch.cat([k, kv[..., :d]], dim=3), torch.cat([v, kv[..., c - d :]], dim=3)


@register_attention("sinkhorn", models={})
class SinkhornAttention(nn.Module):
    """Sparse Sinkhorn attention.

    Args:
        dim: Channels, divisible by `num_heads`.
        num_heads: Heads; each sorts for itself.
        num_prefix_tokens: Tokens in front of those that are sorted.
        max_bucket: Tokens in a bucket: the largest divisor of their number up to this. Where that
            is 1, as for primes, the scores are those of all pairs of tokens.
        sort: ``"sinkhorn"`` or ``"topk"``.
        n_top: Buckets that ``"topk"`` gives to each.
        iterations: Sinkhorn normalisations.
        temperature: Of the Sinkhorn normalisation; small ones give permutations.
        keys_as_values: Let sorted keys take the place of sorted values.
        report: What to write into ``info``: any of ``traits.gives``.

    Shape: (B, N, dim) -> the same. ``info["keys"]`` (B, heads, N, d); ``info["class_attention"]``
    (B, heads, P, N).

    Raises:
        ValueError: Another `sort`, or a number that has to be positive and is not.
    """

    traits: ClassVar[AttentionTraits] = AttentionTraits(
        gives=frozenset({"keys", "class_attention"})
    )
    first_linear: ClassVar[str] = "qkv"
    fused_attn: Final[bool]
    num_prefix_tokens: Final[int]
    reports_keys: Final[bool]
    reports_class_attention: Final[bool]

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
        num_prefix_tokens: int = 1,
        max_bucket: int = 32,
        sort: str = "sinkhorn",
        n_top: int = 1,
        iterations: int = 8,
        temperature: float = 0.75,
        keys_as_values: bool = False,
        report: Sequence[str] = (),
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        check_heads("sinkhorn", dim, num_heads)
        check_report("sinkhorn", report, self.traits.gives)
        if sort not in ("sinkhorn", "topk"):
            raise ValueError(f"sinkhorn takes sort='sinkhorn' or 'topk', got {sort!r}")
        if min(max_bucket, n_top, iterations, temperature) <= 0:
            raise ValueError(
                f"sinkhorn needs positive numbers, got {max_bucket=}, {n_top=}, {iterations=}, "
                f"{temperature=}"
            )
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.num_prefix_tokens = num_prefix_tokens
        self.max_bucket = max_bucket
        self.n_top = n_top if sort == "topk" else 0
        self.iterations = iterations
        self.temperature = temperature
        self.keys_as_values = keys_as_values
        self.fused_attn = use_fused_attn()
        self.reports_keys = "keys" in report
        self.reports_class_attention = "class_attention" in report

        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **factory)
        self.q_norm = optional_norm("sinkhorn", qk_norm, norm_layer, self.head_dim, **factory)
        self.k_norm = optional_norm("sinkhorn", qk_norm, norm_layer, self.head_dim, **factory)
        self.attn_drop = nn.Dropout(attn_drop)
        self.norm = optional_norm("sinkhorn", scale_norm, norm_layer, dim, **factory)
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
        refuse_mask("sinkhorn", attn_mask, is_causal)
        if size is not None:
            raise ValueError("sinkhorn does not take token sizes; pass size=None")
        B, N, C = x.shape
        P, H, d = self.num_prefix_tokens, self.num_heads, self.head_dim
        # (3, B, heads, N, d)
        qkv = self.qkv(x).reshape(B, N, 3, H, d).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        if info is not None:
            if self.reports_keys:
                info["keys"] = k
            if self.reports_class_attention:
                weights = (q[:, :, :P] * d**-0.5) @ k.transpose(-2, -1)
                info["class_attention"] = weights.softmax(dim=-1)

        bucket_q, bucket_k, bucket_v = in_buckets(
            q[:, :, P:],
            k[:, :, P:],
            v[:, :, P:],
            self.max_bucket,
            self.n_top,
            self.iterations,
            self.temperature,
            self.training,
            self.keys_as_values,
        )
        if self.num_prefix_tokens > 0:
            U = bucket_q.shape[2]
            prefix_k = k[:, :, :P].unsqueeze(2).expand(B, H, U, P, d)
            prefix_v = v[:, :, :P].unsqueeze(2).expand(B, H, U, P, d)
            bucket_k = torch.cat([prefix_k, bucket_k], dim=3)
            bucket_v = torch.cat([prefix_v, bucket_v], dim=3)
        y = self.attend(bucket_q.flatten(1, 2), bucket_k.flatten(1, 2), bucket_v.flatten(1, 2))
        y = y.reshape(B, H, N - P, d)
        if self.num_prefix_tokens > 0:
            y = torch.cat([self.attend(q[:, :, :P], k, v), y], dim=2)
        y = self.norm(y.transpose(1, 2).reshape(B, N, C))
        return self.proj_drop(self.proj(y))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Softmax attention, (B, groups, n, d) to (B, groups, m, d)."""
        if self.fused_attn:
            p = self.attn_drop.p if self.training else 0.0
            return F.scaled_dot_product_attention(q, k, v, dropout_p=p)
        weights = (q * self.head_dim**-0.5) @ k.transpose(-2, -1)
        return self.attn_drop(weights.softmax(dim=-1)) @ v

    @staticmethod
    def from_reference(state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Parameter names of the benchmark's code to ours: its q and kv are separate layers."""
        out = rename(state, {"to_out.": "proj."})
        for leaf in ("weight", "bias"):
            parts = [f"to_q.{leaf}", f"to_kv.{leaf}"]
            if all(part in out for part in parts):
                put(out, f"qkv.{leaf}", torch.cat([out.pop(part) for part in parts]))
        return out
