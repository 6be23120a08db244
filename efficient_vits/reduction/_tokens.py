"""Small pure functions that reductions share: taking tokens, and following them."""

from typing import Optional, Tuple  # noqa: UP035 (TorchScript reads them)

import torch
from timm.layers import register_notrace_function
from torch import Tensor


def take(x: Tensor, index: Tensor) -> Tensor:
    """Tokens `index` (B, n) of x (B, N, C), (B, n, C)."""
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def redirect(source: Optional[Tensor], new: Tensor) -> Optional[Tensor]:
    """The map from patches to tokens after the tokens moved.

    Args:
        source: (B, N0), the token that each patch is in, -1 if dropped; None if nobody asks.
        new: (B, N), where each of these tokens is now, -1 if dropped.
    """
    if source is None:
        return None
    return torch.where(source >= 0, new.gather(1, source.clamp(min=0)), source)


@register_notrace_function
def keep_tokens(
    x: Tensor, size: Optional[Tensor], source: Optional[Tensor], kept: Tensor
) -> Tuple[Tensor, Optional[Tensor], Optional[Tensor]]:  # noqa: UP006
    """The tokens `kept` (B, n), prefix tokens among them, in this order; the others are dropped."""
    if source is not None:
        order = torch.arange(kept.shape[1], device=kept.device).expand_as(kept)
        new = torch.full(x.shape[:2], -1, dtype=kept.dtype, device=kept.device)
        source = redirect(source, new.scatter(1, kept, order))
    if size is not None:
        size = take(size, kept)
    return take(x, kept), size, source


@register_notrace_function
def token_indices(x: Tensor, num_prefix_tokens: int) -> Tensor:
    """A map that says that every patch token of x (B, N, C) is itself, (B, N - P)."""
    return torch.arange(num_prefix_tokens, x.shape[1], device=x.device).expand(x.shape[0], -1)


@register_notrace_function
def follow(
    name: str, value: Tensor, moved: Optional[Tensor], num_tokens: int, num_prefix_tokens: int
) -> Tensor:
    """What the attention reported of its tokens, brought to the tokens that there are now.

    The keys of tokens that became one are averaged, and so is the attention they paid; the
    attention they got is added up.

    Args:
        name: What it is.
        value: ``"keys"`` (B, heads, N, d), ``"class_attention"`` (B, heads, P, N) or
            ``"attention"`` (B, heads, N, N).
        moved: (B, N - P), where each patch token is now, -1 if dropped.
        num_tokens: Tokens there are now.
        num_prefix_tokens: P of them are prefix tokens.
    """
    assert moved is not None  # TorchScript takes what a reduction returns for optional
    prefix = torch.arange(num_prefix_tokens, device=moved.device).expand(moved.shape[0], -1)
    new = torch.cat([prefix, moved], dim=1)
    here = torch.arange(num_tokens, device=moved.device).unsqueeze(-1)
    belongs = (new.unsqueeze(1) == here).unsqueeze(1).to(value.dtype)  # (B, 1, n, N)
    if name != "class_attention":  # one row per token
        value = belongs @ value / belongs.sum(dim=-1, keepdim=True).clamp(min=1)
    return value if name == "keys" else value @ belongs.transpose(-2, -1)


@register_notrace_function
def compose(
    source: Optional[Tensor], moved: Optional[Tensor], num_prefix_tokens: int
) -> Optional[Tensor]:
    """`source` after patch tokens went where `moved` (B, N - P) says."""
    assert moved is not None
    if source is None:
        return None
    patch = (source - num_prefix_tokens).clamp(min=0)
    return torch.where(source >= 0, moved.gather(1, patch), source)
