r"""EViT: patches that the class token pays little attention to are dropped, or fused into one.

With a_i the attention of the class token to patch i, averaged over heads, the  ceil(kappa n)  of n
patches with the largest a_i stay. `evit` drops the others. `evit_fuse` puts one token in their
place,

    x_fused = sum_{i dropped} a_i x_i ,

which later blocks treat as a patch like any other: it may stay, or be fused again.

Source: Liang et al., "Not All Patches are What You Need: Expediting Vision Transformers via Token
Reorganizations", ICLR 2022 (arXiv 2202.07800), section 3. Written from the paper. The authors' code
(Apache-2.0) fixes the details: blocks 3, 6 and 9 of 12, rounding up, a_i that do not add up to one,
a keep rate that a schedule lowers from 1 during training (`set_keep_rate`).
"""

import math
from collections.abc import Sequence
from typing import ClassVar, Dict, Optional, Tuple  # noqa: UP035 (TorchScript reads them)

import torch
from timm.layers import register_notrace_function
from torch import Tensor, nn

from efficient_vits._numerics import wide_matmul
from efficient_vits.reduction._interface import ReductionTraits, register_reduction
from efficient_vits.reduction._tokens import keep_tokens, redirect, take

VIT = {"no_embed_class": False, "init_values": None}


def patches_kept(patches: int, keep_rate: float) -> int:
    """How many of so many patches stay: the rate, rounded up."""
    return math.ceil(keep_rate * patches)


@register_notrace_function
def attentiveness(class_attention: Tensor, num_prefix_tokens: int) -> Tensor:
    """The class token's attention to every patch, (B, heads, P, N) -> (B, N - P).

    The class token is the first of the prefix tokens.
    """
    return class_attention[:, :, 0, num_prefix_tokens:].mean(dim=1)


@register_notrace_function
def most_attended(scores: Tensor, num_prefix_tokens: int, keep_rate: float) -> Tensor:
    """Indices of the tokens that stay, prefix tokens first: scores (B, N - P) -> (B, n)."""
    P = num_prefix_tokens
    prefix = torch.arange(P, device=scores.device).expand(scores.shape[0], -1)
    patches = scores.topk(patches_kept(scores.shape[1], keep_rate), dim=1)[1]
    return torch.cat([prefix, patches + P], dim=1)


@register_notrace_function
def drop(
    x: Tensor,
    size: Optional[Tensor],
    source: Optional[Tensor],
    scores: Tensor,
    keep_rate: float,
) -> Tuple[Tensor, Optional[Tensor], Optional[Tensor]]:  # noqa: UP006
    """Keep the patches with the largest scores (B, N - P); shapes as in `create_reduction`."""
    patches = scores.shape[1]
    if patches_kept(patches, keep_rate) == patches:
        return x, size, source
    return keep_tokens(x, size, source, most_attended(scores, x.shape[1] - patches, keep_rate))


@register_notrace_function
def fuse(
    x: Tensor,
    size: Optional[Tensor],
    source: Optional[Tensor],
    scores: Tensor,
    keep_rate: float,
) -> Tuple[Tensor, Optional[Tensor], Optional[Tensor]]:  # noqa: UP006
    """As `drop`, with one more token at the end: the dropped ones, weighed with their scores."""
    patches = scores.shape[1]
    if patches_kept(patches, keep_rate) == patches:
        return x, size, source
    P = x.shape[1] - patches
    kept = most_attended(scores, P, keep_rate)
    weights = scores.scatter(1, kept[:, P:] - P, 0.0).unsqueeze(1)  # (B, 1, N - P)
    fused = wide_matmul(weights, x[:, P:]).to(x.dtype)
    x = torch.cat([take(x, kept), fused], dim=1)
    if size is not None:
        kept_size = take(size, kept)
        rest = size.sum(dim=1, keepdim=True) - kept_size.sum(dim=1, keepdim=True)
        size = torch.cat([kept_size, rest], dim=1)
    if source is not None:
        order = torch.arange(kept.shape[1], device=kept.device).expand_as(kept)
        new = torch.full_like(scores, kept.shape[1], dtype=kept.dtype)
        new = torch.cat([order[:, :P], new], dim=1).scatter(1, kept, order)
        source = redirect(source, new)
    return x, size, source


def rate_of_block(keep_rate: float | Sequence[float], depth: int, block: int) -> float:
    """The keep rate of one block; a number is that of blocks depth / 4, depth / 2, 3 depth / 4.

    Raises:
        ValueError: Rates outside of (0, 1], or not one per block.
    """
    where = (depth // 4, depth // 2, 3 * depth // 4)
    rates = (
        [keep_rate if i in where else 1.0 for i in range(depth)]
        if isinstance(keep_rate, int | float)
        else list(keep_rate)
    )
    if len(rates) != depth or not all(0 < rate <= 1 for rate in rates):
        raise ValueError(
            f"evit takes a keep_rate with 0 < keep_rate <= 1, or one for each of {depth} blocks, "
            f"got {keep_rate!r}"
        )
    return float(rates[block])


class _ByAttentiveness(nn.Module):
    """What both share: the keep rate of the block."""

    flop_kind: ClassVar[str] = "reduction"
    traits: ClassVar[ReductionTraits] = ReductionTraits(
        place="between", needs=frozenset({"class_attention"}), plain_weights=True
    )

    def __init__(
        self,
        dim: int,
        depth: int,
        block: int,
        *,
        num_prefix_tokens: int = 1,
        keep_rate: float | Sequence[float] = 0.7,
    ) -> None:
        super().__init__()
        self.num_prefix_tokens = num_prefix_tokens
        self.block = block
        self.keep_rate = rate_of_block(keep_rate, depth, block)
        self.active = self.keep_rate < 1

    def extra_repr(self) -> str:
        return f"keep_rate={self.keep_rate}"


@register_reduction("evit", vit=VIT)
class EViT(_ByAttentiveness):
    """Drops the patches that the class token attends to least.

    Args:
        dim: Channels.
        depth: Blocks of the model.
        block: Which of them this is.
        num_prefix_tokens: Tokens that always stay, the class token first.
        keep_rate: Part of the patches that stays at blocks depth / 4, depth / 2 and 3 depth / 4,
            counted from 0; or one number per block. Rounded up, so that a patch is always left.

    Shape: (B, N, C) -> (B, P + ceil(keep_rate (N - P)), C).
    """

    @torch.jit.ignore
    def num_tokens(self, n: int) -> int:
        """Tokens that n tokens become."""
        P = self.num_prefix_tokens
        return P + patches_kept(n - P, self.keep_rate)

    def forward(
        self,
        x: Tensor,
        size: Optional[Tensor],
        source: Optional[Tensor],
        info: Dict[str, Tensor],  # noqa: UP006
    ) -> Tuple[Tensor, Optional[Tensor], Optional[Tensor]]:  # noqa: UP006
        scores = attentiveness(info["class_attention"], self.num_prefix_tokens)
        return drop(x, size, source, scores, self.keep_rate)


@register_reduction("evit_fuse", vit=VIT)
class EViTFuse(_ByAttentiveness):
    """Fuses the patches that the class token attends to least into one token.

    The arguments are those of `EViT`. Where every patch stays there is no fused token.

    Shape: (B, N, C) -> (B, P + ceil(keep_rate (N - P)) + 1, C).
    """

    @torch.jit.ignore
    def num_tokens(self, n: int) -> int:
        """Tokens that n tokens become."""
        P = self.num_prefix_tokens
        return min(P + patches_kept(n - P, self.keep_rate) + 1, n)

    def forward(
        self,
        x: Tensor,
        size: Optional[Tensor],
        source: Optional[Tensor],
        info: Dict[str, Tensor],  # noqa: UP006
    ) -> Tuple[Tensor, Optional[Tensor], Optional[Tensor]]:  # noqa: UP006
        scores = attentiveness(info["class_attention"], self.num_prefix_tokens)
        return fuse(x, size, source, scores, self.keep_rate)


def set_keep_rate(model: nn.Module, keep_rate: float | Sequence[float]) -> None:
    """Another keep rate for a model with `evit` or `evit_fuse`, such as a schedule asks for.

    Args:
        model: Its ``token_counts`` follow.
        keep_rate: For all blocks that were built with a rate below 1; or one number per block of
            the model, 1 in all other blocks.

    Raises:
        ValueError: No block of the model was built with a keep rate below 1, rates outside of
            (0, 1], or rates below 1 for blocks without.
    """
    modules = {m.block: m for m in model.modules() if isinstance(m, _ByAttentiveness)}
    if not modules:
        raise ValueError(
            "no block of this model drops tokens by a keep rate: build it with a reduction "
            "'evit' or 'evit_fuse' and a keep_rate below 1"
        )
    rates: dict[int, float] = (
        dict.fromkeys(modules, keep_rate)
        if isinstance(keep_rate, int | float)
        else dict(enumerate(keep_rate))
    )
    refused = [rate for rate in rates.values() if not 0 < rate <= 1]
    without = [block for block, rate in rates.items() if rate < 1 and block not in modules]
    if refused or without or not rates.keys() >= modules.keys():
        raise ValueError(
            f"keep_rate must be in (0, 1], or one number per block and 1 outside of blocks "
            f"{sorted(modules)}, got {keep_rate!r}"
        )
    for block, module in modules.items():
        module.keep_rate = float(rates[block])
