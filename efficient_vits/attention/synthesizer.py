r"""Synthesizer: attention weights that no pair of tokens is compared for.

    y = softmax(S(x)) v

    dense              S_n = W_2 relu(W_1 x_n)
    random             S = R, parameters
    factorized dense   S_nm = a(x_n)_i b(x_n)_j, with i, j from m
    factorized random  S = R_1 R_2^T
    mixture            S = sum_i alpha_i S_i,  alpha = softmax of a parameter

The cost stays quadratic in tokens; the factorized forms save parameters. Source: Tay et al.,
"Synthesizer: Rethinking Self-Attention for Transformer Models", ICML 2021 (arXiv 2005.00743),
section 3. Written anew (the authors' code, in Mesh TensorFlow, is Apache-2.0). The paper
leaves open how the two factors of the factorized dense form are tiled: the default is the
benchmark's, ``pairs=True`` the other reading, see `FactorizedDenseLogits`.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Final, List, Optional, cast  # noqa: UP035 (TorchScript)

import torch
from timm.layers import maybe_add_mask
from torch import Tensor, nn

from efficient_vits._numerics import widen
from efficient_vits._state import rename
from efficient_vits.attention._interface import (
    AttentionTraits,
    check_heads,
    optional_norm,
    register_attention,
)
from efficient_vits.attention._synthesis import FORMS, Logits
from efficient_vits.attention._tokens import Grid
from efficient_vits.attention.softmax import attention_bias
from efficient_vits.catalog import Paper

PAPER = Paper(
    title="Synthesizer: Rethinking Self-Attention for Transformer Models",
    first_author="Tay",
    venue="ICML 2021",
    year=2021,
    arxiv="2005.00743",
)


class Synthesizer(nn.Module):
    """Base class of the forms.

    Args:
        dim: Channels, divisible by `num_heads`.
        num_heads: Heads.
        qkv_bias: Bias of the values, and of the layers that make the logits.
        qk_norm: Refused: there are no queries and keys.
        grid_size: Rows and columns of patch tokens; required.
        num_prefix_tokens: Tokens in front of them.
        mix_with: Further forms, of ``"dense"``, ``"random"``, ``"factorized_dense"``,
            ``"factorized_random"`` and ``"dot"``, whose logits are added with learned weights: the
            paper's mixtures. ``"dot"`` is plain attention.
        f: Factorized dense: values of the first factor, by default the root of the number of
            tokens. Factorized random: rank, 8 by default.
        pairs: Factorized dense: every pair of the two factors once.

    Shape: (B, P + H * W, dim) -> the same.

    Raises:
        ValueError: No grid, an unknown or repeated form, or an argument for a form that is not in
            the mixture.
    """

    traits: ClassVar[AttentionTraits] = AttentionTraits(
        token_count=True, mask=True, causal=True, refuses=frozenset({"qk_norm"})
    )
    form: ClassVar[str]
    shared: Final[bool]

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
        grid_size: Grid | None = None,
        num_prefix_tokens: int = 1,
        mix_with: Sequence[str] = (),
        f: int | None = None,
        pairs: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        check_heads("synthesizer", dim, num_heads)
        if grid_size is None:
            raise ValueError("synthesizer has parameters per token and needs grid_size, got None")
        if qk_norm:
            raise ValueError("synthesizer has no queries and keys; qk_norm must be False")
        forms = [self.form, *mix_with]
        _check_forms(forms, f, pairs)
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.num_prefix_tokens = num_prefix_tokens
        self.num_tokens = num_prefix_tokens + grid_size[0] * grid_size[1]

        self.logits = nn.ModuleDict()
        for form in forms:
            own = {"pairs": pairs} if form == "factorized_dense" else {}
            self.logits[form] = FORMS[form](
                dim, num_heads, grid_size, num_prefix_tokens, qkv_bias, f, **own, **factory
            )
        self.shared = all(FORMS[form].shared for form in forms)
        self.mixture = nn.Parameter(torch.empty(len(forms), **factory)) if len(forms) > 1 else None
        self.v = nn.Linear(dim, dim, bias=qkv_bias, **factory)
        self.attn_drop = nn.Dropout(attn_drop)
        self.norm = optional_norm("synthesizer", scale_norm, norm_layer, dim, **factory)
        self.proj = nn.Linear(dim, dim, bias=proj_bias, **factory)
        self.proj_drop = nn.Dropout(proj_drop)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Give the forms of a mixture equal weights."""
        if self.mixture is not None:
            nn.init.zeros_(self.mixture)

    def forward(
        self, x: Tensor, attn_mask: Optional[Tensor] = None, is_causal: bool = False
    ) -> Tensor:
        B, N, C = x.shape
        torch._assert(
            self.num_tokens == N,
            "synthesizer got another number of tokens than it has parameters for; set_grid_size",
        )
        parts: List[Tensor] = []  # noqa: UP006
        for form in self.logits.values():
            parts.append(widen(form(x)))
        logits = parts[0]  # (B or 1, heads, N, N)
        mixture = self.mixture
        if mixture is not None:
            shares = widen(mixture).softmax(dim=0)
            logits = logits * shares[0]
            for i in range(1, len(parts)):
                logits = logits + parts[i] * shares[i]
        logits = maybe_add_mask(logits, attention_bias(logits, attn_mask, is_causal, None))
        v = self.v(x).reshape(B, N, self.num_heads, self.head_dim)
        weights = self.attn_drop(logits.softmax(dim=-1)).to(v.dtype)
        if self.shared and attn_mask is None:
            # One matrix product for all images, without a copy of the weights for each.
            y = torch.einsum("hnm,bmhd->bnhd", weights.squeeze(0), v)
        else:
            y = (weights @ v.transpose(1, 2)).transpose(1, 2)
        return self.proj_drop(self.proj(self.norm(y.reshape(B, N, C))))

    @torch.jit.ignore
    def set_grid_size(self, grid_size: Grid) -> None:
        """Resample everything that has an entry per token to another grid."""
        self.num_tokens = self.num_prefix_tokens + grid_size[0] * grid_size[1]
        for form in self.logits.values():
            cast(Logits, form).set_grid_size(grid_size)

    @staticmethod
    def from_reference(state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Parameter names of the benchmark's code to ours."""
        dense, random = "logits.factorized_dense.", "logits.factorized_random."
        names = {
            "f_a.": f"{dense}to_a.",
            "f_b.": f"{dense}to_b.",
            "random_attn_1": f"{random}left",
            "random_attn_2": f"{random}right",
        }
        # There the second factor is stored as (heads, f, tokens).
        turned = {k: v.transpose(1, 2) if k == "random_attn_2" else v for k, v in state.items()}
        return rename(turned, names)


def _check_forms(forms: list[str], f: int | None, pairs: bool) -> None:
    """Raise for forms that there are not, and for arguments that none of them takes."""
    if unknown := [form for form in forms if form not in FORMS]:
        raise ValueError(f"synthesizer cannot mix with {unknown}; known: {', '.join(FORMS)}")
    if len(set(forms)) < len(forms):
        raise ValueError(f"synthesizer mixes each form once, got {forms}")
    if f is not None and (f < 1 or not any(FORMS[form].factorized for form in forms)):
        raise ValueError(f"f >= 1 is the factor of a factorized form, got {f=} for {forms}")
    if pairs and "factorized_dense" not in forms:
        raise ValueError(f"pairs is an option of factorized_dense, got it for {forms}")


@register_attention("synthesizer_d", paper=PAPER)
class DenseSynthesizer(Synthesizer):
    """Each token makes its logits with two layers. Arguments: those of `Synthesizer`."""

    form = "dense"


@register_attention("synthesizer_r", paper=PAPER)
class RandomSynthesizer(Synthesizer):
    """The logits are parameters. Arguments: those of `Synthesizer`."""

    form = "random"


@register_attention("synthesizer_fd")
class FactorizedDenseSynthesizer(Synthesizer):
    """The logits are products of two short vectors. Arguments: those of `Synthesizer`."""

    form = "factorized_dense"


@register_attention("synthesizer_fr")
class FactorizedRandomSynthesizer(Synthesizer):
    """The logits are parameters of low rank. Arguments: those of `Synthesizer`."""

    form = "factorized_random"
