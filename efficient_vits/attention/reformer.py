r"""LSH attention: every token attends to those whose query points in a similar direction.

    k_n = q_n / |q_n|
    b_n = argmax [k_n R; -k_n R]               R (d x buckets / 2), random: the bucket of token n
    y_n = sum_m c_nm exp(z_nm) v_m / sum_m c_nm exp(z_nm),    z_nm = q_n . k_m / sqrt(d)

Tokens are sorted by bucket and cut into chunks of one size. A token attends to its own chunk and
the one before, in every round of hashing anew: c_nm counts the rounds in which n finds m. To itself
it attends only where it finds nobody else (10^5 is taken off z_nn). The cost is N log N.

Source: Kitaev et al., "Reformer: The Efficient Transformer", ICLR 2020 (arXiv 2001.04451),
section 2 and appendix A; the hash is that of Andoni et al., 2015 (arXiv 1509.02897). Written from
the papers. A key found in several rounds counts several times, as in the benchmark's runs, whose
public PyTorch port is MIT; the paper divides by c_nm. Reversible layers are a matter of the model,
and are left out. Padding is hidden, where the benchmark's runs attended to it.

In evaluation the hash follows `seed` and is the same for every call; in training every call has
its own. The benchmark's runs hashed at random in evaluation too.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Dict, Final, Optional, Tuple  # noqa: UP035 (TorchScript)

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_function
from torch import Tensor, nn

from efficient_vits._numerics import unit_vectors, wide_matmul
from efficient_vits._random import block_seed, draw_seed, seeded_normal
from efficient_vits._state import rename
from efficient_vits.attention._interface import (
    AttentionTraits,
    check_heads,
    check_report,
    optional_norm,
    refuse_mask,
    register_attention,
)

# Legend: B images, H heads, N tokens, d channels of a head, R rounds of hashing, J chunks of m
# tokens (J m >= N), G = B H R.


def signed_argmax(x: Tensor) -> Tensor:
    """Which of [x; -x] is the largest along the last dimension."""
    return torch.cat([x, -x], dim=-1).argmax(dim=-1)


@register_notrace_function
def lsh_buckets(k: Tensor, rounds: int, num_buckets: int, seed: Tensor) -> Tensor:
    """Buckets of the directions (B, H, N, d) in every round, (B, H, R, N).

    There are at least `num_buckets`, an even number. More than 64 are the product of two hashes,
    so that the cost of hashing grows as N^1.5 and not as N^2.
    """
    d = k.shape[3]
    first, second = num_buckets // 2, 0
    if num_buckets > 64:
        first = int(math.sqrt(num_buckets)) // 2
        second = -(-num_buckets // (4 * first))
    normal = seeded_normal(rounds * d * (first + second), seed)
    rotations = normal.reshape(1, 1, rounds, d, first + second)
    turned = wide_matmul(k.detach().unsqueeze(2), rotations)  # (B, H, R, N, first + second)
    bucket = signed_argmax(turned[..., :first])
    if second > 0:
        bucket = bucket * (2 * second) + signed_argmax(turned[..., first:])
    return bucket


@register_notrace_function
def lsh_order(k: Tensor, rounds: int, chunk: int, seed: Tensor) -> Tensor:
    """Tokens in the order of their buckets, (B, H, R, N), those of a bucket as they come."""
    N = k.shape[2]
    bucket = lsh_buckets(k, rounds, 2 * max(1, -(-N // (2 * chunk))), seed)
    return (bucket * N + torch.arange(N, device=k.device)).argsort(dim=-1)


@register_notrace_function
def chunk_rows(order: Tensor, num_tokens: int, chunk: int) -> Tensor:
    """Where each place of the chunks (J, G, m) is found among the rows of (B H N, d), flat.

    Chunks come first so that each chunk and the one before it are views of one tensor, and rows are
    picked by a flat index because that is all that is kept for the backward pass.
    """
    B, H, R, L = order.shape
    first = torch.arange(B * H, device=order.device).reshape(B, H, 1, 1) * num_tokens
    rows = (order + first).reshape(B * H * R, L // chunk, chunk)
    return rows.transpose(0, 1).reshape(-1)


@register_notrace_function
def token_rows(order: Tensor, chunks: int, chunk: int) -> Tensor:
    """Where each token (B, H, R, N) is found among the rows of (J G m, d), flat."""
    B, H, R, N = order.shape
    place = order.argsort(dim=-1).reshape(B * H * R, N)
    group = torch.arange(B * H * R, device=order.device).unsqueeze(-1)
    return (((place // chunk) * (B * H * R) + group) * chunk + place % chunk).reshape(-1)


@register_notrace_function
def chunk_weights(
    q: Tensor, k: Tensor, order: Tensor, num_tokens: int, chunk: int
) -> Tuple[Tensor, Tensor]:  # noqa: UP006
    """Unnormalised weights (J, G, m, 2 m) on the previous and the own chunk, and their maxima.

    Returns:
        exp(z - max z), in float32 at least, and max z (J, G, m, 1), which has no gradient: it
        cancels in the quotient. Only the former is kept for the backward pass.
    """
    J = q.shape[0]
    # Tokens behind the last are padding, as is what comes before the first chunk.
    token = order.reshape(-1, J, chunk).transpose(0, 1)  # (J, G, m)
    token = token.masked_fill(token_is_padding(J, chunk, num_tokens, order.device), -1)
    seen = torch.cat([torch.full_like(token[:1], -1), token])  # (1 + J, G, m)
    seen = torch.cat([seen[:-1], seen[1:]], dim=-1).unsqueeze(2)  # (J, G, 1, 2 m)
    z = torch.cat([q @ k[:-1].transpose(-2, -1), q @ k[1:].transpose(-2, -1)], dim=-1)
    z = z if z.dtype == torch.float64 else z.float()
    bias = torch.zeros_like(z).masked_fill(seen == token.unsqueeze(-1), -1e5)
    z = z + bias.masked_fill(seen < 0, -1e9)
    top = z.detach().amax(dim=-1, keepdim=True)
    return (z - top).exp(), top


@register_notrace_function
def token_is_padding(chunks: int, chunk: int, num_tokens: int, device: torch.device) -> Tensor:
    """Which places (J, 1, m) of the sorted sequence lie behind the last token."""
    place = torch.arange(chunks * chunk, device=device).reshape(chunks, 1, chunk)
    return place >= num_tokens


@register_notrace_function
def lsh_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bucket_size: int,
    rounds: int,
    seed: int,
    fresh: bool,
    dropout: float,
) -> Tensor:
    """LSH attention (B, H, N, d) of scaled queries, unit keys and values.

    Args:
        q: Queries, scaled.
        k: Unit keys.
        v: Values.
        bucket_size: Tokens per bucket and per chunk.
        rounds: Rounds of hashing.
        seed: What the hash follows.
        fresh: Draw a new hash instead.
        dropout: Rate of dropout on the weights.
    """
    B, H, N, d = q.shape
    m = min(bucket_size, N)
    J = -(-N // m)
    if J == 1:
        rounds = 1  # all rounds are one and the same
    order = lsh_order(k, rounds, m, draw_seed(seed, fresh, q.device))
    padded = F.pad(order, [0, J * m - N])
    rows = chunk_rows(padded, N, m)
    in_chunks = [J, B * H * rounds, m, d]
    qc = q.reshape(B * H * N, d).index_select(0, rows).reshape(in_chunks)
    kc = k.reshape(B * H * N, d).index_select(0, rows).reshape(in_chunks)
    vc = v.reshape(B * H * N, d).index_select(0, rows).reshape(in_chunks)
    kc = F.pad(kc, [0, 0, 0, 0, 0, 0, 1, 0])  # (1 + J, G, m, d)
    vc = F.pad(vc, [0, 0, 0, 0, 0, 0, 1, 0])
    weights, top = chunk_weights(qc, kc, padded, N, m)
    total = weights.sum(dim=-1, keepdim=True)  # (J, G, m, 1)
    weights = F.dropout(weights, dropout, dropout > 0.0).to(v.dtype)
    y = weights[..., :m] @ vc[:-1] + weights[..., m:] @ vc[1:]  # (J, G, m, d)

    # Back to the order of the tokens, and one sum over all rounds.
    y = torch.cat([y.to(total.dtype), total, top], dim=-1)
    y = y.reshape(J * B * H * rounds * m, d + 2).index_select(0, token_rows(order, J, m))
    y = y.reshape(B, H, rounds, N, d + 2)
    top = y[..., -1:].detach()
    share = (top - top.amax(dim=2, keepdim=True)).exp()
    y = (y[..., :-1] * share).sum(dim=2)  # (B, H, N, d + 1)
    return (y[..., :-1] / y[..., -1:]).to(v.dtype)


@register_attention("reformer")
class ReformerAttention(nn.Module):
    """LSH attention.

    Args:
        dim: Channels, divisible by `num_heads`.
        num_heads: Heads.
        qkv_bias: Give ``qk``, which queries and keys share, and ``v`` a bias.
        qk_norm: Refused: keys are unit vectors already.
        depth: Index of the block; every block has hashes of its own.
        bucket_size: Tokens per chunk, and per bucket on average.
        num_hashes: Rounds of hashing.
        seed: What the hash follows in evaluation.
        report: ``("keys",)`` writes the unit keys into ``info``.

    Shape: (B, N, dim) -> (B, N, dim). ``info["keys"]`` (B, heads, N, d).
    """

    traits: ClassVar[AttentionTraits] = AttentionTraits(
        gives=frozenset({"keys"}), refuses=frozenset({"qk_norm"})
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
        bucket_size: int = 64,
        num_hashes: int = 8,
        seed: int = 0,
        depth: int = 0,
        report: Sequence[str] = (),
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        check_heads("reformer", dim, num_heads)
        check_report("reformer", report, self.traits.gives)
        if qk_norm:
            raise ValueError("reformer's keys are unit vectors already; qk_norm must be False")
        if bucket_size < 1 or num_hashes < 1:
            raise ValueError(
                f"reformer needs bucket_size and num_hashes >= 1, got {bucket_size=}, {num_hashes=}"
            )
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.bucket_size = bucket_size
        self.num_hashes = num_hashes
        self.seed = block_seed(seed, depth)
        self.reports_keys = "keys" in report
        self.qk = nn.Linear(dim, dim, bias=qkv_bias, **factory)
        self.v = nn.Linear(dim, dim, bias=qkv_bias, **factory)
        self.attn_drop = nn.Dropout(attn_drop)
        self.norm = optional_norm("reformer", scale_norm, norm_layer, dim, **factory)
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
        refuse_mask("reformer", attn_mask, is_causal)
        if size is not None:
            raise ValueError("reformer does not take token sizes; pass size=None")
        B, N, C = x.shape
        q = self.qk(x).reshape(B, N, self.num_heads, self.head_dim).transpose(1, 2)
        v = self.v(x).reshape(B, N, self.num_heads, self.head_dim).transpose(1, 2)
        k = unit_vectors(q)
        if info is not None and self.reports_keys:
            info["keys"] = k
        y = lsh_attention(
            q * self.head_dim**-0.5,
            k,
            v,
            self.bucket_size,
            self.num_hashes,
            self.seed,
            self.training,
            self.attn_drop.p if self.training else 0.0,
        )
        y = self.norm(y.transpose(1, 2).reshape(B, N, C))
        return self.proj_drop(self.proj(y))

    @staticmethod
    def from_reference(state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Parameter names of the benchmark's code to ours."""
        return rename(state, {"toqk.": "qk.", "tov.": "v.", "to_out.": "proj."})
