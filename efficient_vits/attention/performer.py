r"""Performer: random features whose products are, on average, the softmax's weights (FAVOR+).

    y_n = phi(q_n)^T (sum_m phi(k_m) v_m^T) / (phi(q_n)^T sum_m phi(k_m))
    phi(x) = exp(W x' - |x'|^2 / 2 - c) + eps,    x' = x / d^(1/4)     (softmax kernel)
    phi(x) = relu(W x') + eps                                          (ReLU kernel)

The rows of W are Gaussian vectors that are orthogonal to each other. c, the stabiliser, is the
largest entry of W x': of its own for each query, of all tokens for the keys. It cancels but for
eps = 1e-4 (1e-3 with ReLU), and so does the factor 1 / sqrt(m) of the paper. What eps adds does not
fall with the number of features: keys far below the largest one are seen equally. The cost is
linear in tokens.

Source: Choromanski et al., "Rethinking Attention with Performers", ICLR 2021 (arXiv 2009.14794),
lemma 1 (positive features), section 2.4 (orthogonal ones), section 4 (ReLU). The stabiliser and
both eps are those of the authors' code (Apache-2.0). Written anew. The causal form is
left out: the keys' stabiliser looks at all tokens.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Dict, Final, Optional  # noqa: UP035 (TorchScript reads Dict)

import torch
from timm.layers import register_notrace_function
from torch import Tensor, nn

from efficient_vits._numerics import widen, without_autocast
from efficient_vits._state import put, rename
from efficient_vits.attention._interface import (
    AttentionTraits,
    check_heads,
    check_report,
    optional_norm,
    refuse_mask,
    register_attention,
)
from efficient_vits.attention._kernels import shares, weighted

# What is added to the features of each kernel, as in the authors' code.
EPS = {"softmax": 1e-4, "relu": 1e-3}


def orthogonal_gaussian(
    rows: int, columns: int, device: Any = None, generator: torch.Generator | None = None
) -> Tensor:
    """Gaussian rows, orthogonal within each block of `columns` rows, (rows, columns), float32."""

    def gaussian(n: int) -> Tensor:
        return torch.randn(n, columns, device=device, generator=generator)

    blocks = []
    for _ in range(0, rows, columns):
        q, r = torch.linalg.qr(gaussian(columns))
        # What Gram-Schmidt would give: with the signs of the decomposition, rows are not isotropic.
        blocks.append((q * r.diagonal().sign()).t())
    lengths = gaussian(rows).norm(dim=1, keepdim=True)
    return lengths * torch.cat(blocks)[:rows]


def _features(x: Tensor, projection: Tensor, kernel: str, is_query: bool, eps: float) -> Tensor:
    x = widen(x) * x.shape[-1] ** -0.25
    projected = x @ projection.to(x.dtype).t()  # (B, heads, N, features)
    if kernel == "relu":
        return projected.relu() + eps
    if is_query:
        largest = projected.amax(dim=-1, keepdim=True)
    else:
        largest = projected.amax(dim=(-2, -1), keepdim=True)
    half_square = x.square().sum(dim=-1, keepdim=True) / 2
    return (projected - (half_square + largest)).exp() + eps


@register_notrace_function
def random_features(
    x: Tensor, projection: Tensor, kernel: str, is_query: bool, eps: float = 1e-4
) -> Tensor:
    """Positive features (B, heads, N, m) of queries or keys (B, heads, N, d), float32 at least.

    Half precision is no good here, autocast or not: differences of large numbers are exponentiated.

    Args:
        x: Queries or keys.
        projection: W (m, d).
        kernel: ``"softmax"`` or ``"relu"``.
        is_query: Whose stabiliser to take.
        eps: Added to every feature.
    """
    if torch.jit.is_scripting():
        return _features(x, projection, kernel, is_query, eps)
    with without_autocast(x.device.type):
        return _features(x, projection, kernel, is_query, eps)


@register_attention("performer")
class PerformerAttention(nn.Module):
    """Performer attention.

    Args:
        dim: Channels, divisible by `num_heads`.
        num_heads: Heads; all use the same random features.
        attn_drop: Dropout on the values, as what each token contributes.
        random_features: How many features m; their error falls with 1 / sqrt(m).
        kernel: ``"softmax"``, which they approximate, or ``"relu"``.
        eps: Added to every feature; by default 1e-4, with ReLU 1e-3.
        report: ``("keys",)`` writes the keys before their features into ``info``.

    Shape: (B, N, dim) -> (B, N, dim). ``size`` (B, N, 1) weighs the keys; ``info["keys"]``
    (B, heads, N, d). The buffer ``projection`` (m, d) is part of the weights.

    Raises:
        ValueError: Unknown kernel, no features, or an eps that is not positive.
    """

    traits: ClassVar[AttentionTraits] = AttentionTraits(token_sizes=True, gives=frozenset({"keys"}))
    kernel: Final[str]
    reports_keys: Final[bool]
    projection: Tensor

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
        random_features: int = 128,
        kernel: str = "softmax",
        eps: float | None = None,
        report: Sequence[str] = (),
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        check_heads("performer", dim, num_heads)
        check_report("performer", report, self.traits.gives)
        if kernel not in EPS:
            raise ValueError(f"performer has the kernels {', '.join(EPS)}, got {kernel!r}")
        if eps is not None and not eps > 0:
            raise ValueError(f"performer needs eps > 0, for its features may all be 0, got {eps}")
        if random_features < 1:
            raise ValueError(f"performer needs random_features >= 1, got {random_features}")
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.kernel = kernel
        self.eps = EPS[kernel] if eps is None else eps
        self.reports_keys = "keys" in report
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **factory)
        self.q_norm = optional_norm("performer", qk_norm, norm_layer, self.head_dim, **factory)
        self.k_norm = optional_norm("performer", qk_norm, norm_layer, self.head_dim, **factory)
        self.register_buffer("projection", torch.empty(random_features, self.head_dim, **factory))
        self.attn_drop = nn.Dropout(attn_drop)
        self.norm = optional_norm("performer", scale_norm, norm_layer, dim, **factory)
        self.proj = nn.Linear(dim, dim, bias=proj_bias, **factory)
        self.proj_drop = nn.Dropout(proj_drop)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the random features."""
        self.redraw()

    @torch.jit.ignore
    @torch.no_grad()
    def redraw(self, generator: torch.Generator | None = None) -> None:
        """Draw the random features anew, from `generator` or from the global random state."""
        if self.projection.is_meta:
            return
        rows, columns = self.projection.shape
        device = self.projection.device if generator is None else generator.device
        self.projection.copy_(orthogonal_gaussian(rows, columns, device, generator))

    def forward(
        self,
        x: Tensor,
        attn_mask: Optional[Tensor] = None,
        is_causal: bool = False,
        size: Optional[Tensor] = None,
        info: Optional[Dict[str, Tensor]] = None,  # noqa: UP006
    ) -> Tensor:
        refuse_mask("performer", attn_mask, is_causal)
        B, N, C = x.shape
        # (3, B, heads, N, d)
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        if info is not None and self.reports_keys:
            info["keys"] = k

        q = random_features(q, self.projection, self.kernel, True, self.eps)
        k = random_features(k, self.projection, self.kernel, False, self.eps)
        if size is not None:
            k = k * size.unsqueeze(1)  # (B, 1, N, 1)
        w, s = shares(q, k, 0.0)
        y = weighted(w, s, self.attn_drop(v))
        y = self.norm(y.transpose(1, 2).reshape(B, N, C))
        return self.proj_drop(self.proj(y))

    def extra_repr(self) -> str:
        return f"random_features={self.projection.shape[0]}, kernel={self.kernel!r}"

    @staticmethod
    def from_reference(state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Parameter names of the benchmark's code to ours: its q, k and v are separate layers."""
        renamed = {"to_out.": "proj.", "fast_attention.projection_matrix": "projection"}
        out = rename(state, renamed)
        for kind in ("weight", "bias"):
            parts = [f"to_{part}.{kind}" for part in "qkv"]
            if all(part in out for part in parts):
                put(out, f"qkv.{kind}", torch.cat([out.pop(part) for part in parts]))
        return out
