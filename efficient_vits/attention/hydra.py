r"""Hydra attention: as many heads as channels, so that attention is a global gate.

    y_n = phi(q_n) * sum_m phi(k_m) * v_m,    phi(x) = x / |x|

The cost is linear in tokens and channels. Source: Bolya et al., "Hydra Attention: Efficient
Attention with Many Heads", ECCV Workshops 2022 (arXiv 2209.07484), eq. 9 and section 3.3 (cosine
similarity kernel). Written anew; the paper comes without code.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Dict, Final, Optional  # noqa: UP035 (TorchScript reads Dict)

from torch import Tensor, nn

from efficient_vits._numerics import sum_tokens, unit_vectors
from efficient_vits._state import rename
from efficient_vits.attention._interface import (
    AttentionTraits,
    check_report,
    optional_norm,
    refuse_mask,
    register_attention,
)


@register_attention("hydra")
class HydraAttention(nn.Module):
    """Hydra attention.

    Args:
        dim: Channels.
        num_heads: Part of the interface; by definition Hydra has one head per channel.
        qk_norm: Refused: the kernel normalises queries and keys itself.
        attn_drop: Dropout on what each token contributes to the sum.
        scale_norm: Normalise before the output projection.
        report: ``("keys",)`` writes the unit keys into ``info``.

    Shape: (B, N, dim) -> (B, N, dim). ``size`` (B, N, 1) weighs the keys; ``info["keys"]``
    (B, 1, N, dim).
    """

    traits: ClassVar[AttentionTraits] = AttentionTraits(
        causal=True,
        token_sizes=True,
        gives=frozenset({"keys"}),
        refuses=frozenset({"qk_norm"}),
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
        if qk_norm:
            raise ValueError("hydra normalises queries and keys itself; qk_norm must be False")
        check_report("hydra", report, self.traits.gives)
        self.reports_keys = "keys" in report
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **factory)
        self.attn_drop = nn.Dropout(attn_drop)
        self.norm = optional_norm("hydra", scale_norm, norm_layer, dim, **factory)
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
        refuse_mask("hydra", attn_mask, False)
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        q, k = unit_vectors(q), unit_vectors(k)
        kv = self.attn_drop(k * v)
        if size is not None:
            kv = kv * size
        y = (q * sum_tokens(kv, is_causal)).to(v.dtype)
        if info is not None and self.reports_keys:
            info["keys"] = k.unsqueeze(1)
        return self.proj_drop(self.proj(self.norm(y)))

    @staticmethod
    def from_reference(state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Parameter names of the benchmark's code to ours."""
        return rename(state, {"out.": "proj."})
