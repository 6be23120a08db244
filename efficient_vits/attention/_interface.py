"""What every token mixer has in common: its registry, its traits, and how it refuses."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Optional

from timm.layers import register_notrace_function
from torch import Tensor, nn

from efficient_vits._registry import Mechanism, Registry, Spec

REGISTRY = Registry(
    "attention",
    interface={
        "dim": inspect.Parameter.empty,
        "num_heads": 8,
        "qkv_bias": True,
        "qk_norm": False,
        "scale_norm": False,
        "proj_bias": True,
        "attn_drop": 0.0,
        "proj_drop": 0.0,
        "norm_layer": None,
        "grid_size": None,
        "num_prefix_tokens": 1,
        "report": (),
        "depth": 0,
        "device": None,
        "dtype": None,
    },
    # Without norms nobody calls the norm layer; the others tell a mechanism where it stands.
    hints=frozenset({"norm_layer", "grid_size", "num_prefix_tokens", "depth", "device", "dtype"}),
)
register_attention = REGISTRY.register


@dataclass(frozen=True)
class AttentionTraits:
    """What a token mixer needs and what it can do, declared as its class attribute ``traits``.

    Attributes:
        token_count: Its parameters depend on the number of tokens: it takes ``grid_size`` and
            ``num_prefix_tokens`` and has ``set_grid_size``.
        grid: It needs the patch tokens to form a 2-D grid.
        mixes_prefix: Prefix tokens take part in the mixing. Without, they pass by, a class token
            never sees the image, and a ViT that pools by it is refused.
        prefix_tokens: It handles class and register tokens in front of the patch tokens.
        mask: ``forward`` takes an ``attn_mask``.
        causal: ``forward`` takes ``is_causal=True``.
        token_sizes: ``forward`` takes ``size`` (B, N, 1), how many patches each token stands for.
        gives: What it can ``report`` in ``info``: ``"keys"`` (B, heads, N, d), what a token offers
            to be found by, ``"class_attention"`` (B, heads, P, N), the attention the P prefix
            tokens pay to all tokens, and ``"attention"`` (B, heads, N, N), that of all tokens.
        refuses: Switches of the interface that it raises for: ``"qk_norm"``, ``"scale_norm"``.
        auxiliary_loss: It leaves a term for `efficient_vits.auxiliary_loss`.
        residual: The block adds its input to what the mixer makes of it. Without, the block's only
            skip connection goes around mixer and MLP together.

    A mixer that takes sizes or gives something is called as
    ``forward(x, attn_mask, is_causal, size, info)``, with ``info`` a dict that it fills.
    """

    token_count: bool = False
    grid: bool = False
    prefix_tokens: bool = True
    mixes_prefix: bool = True
    mask: bool = False
    causal: bool = False
    token_sizes: bool = False
    gives: frozenset[str] = frozenset()
    refuses: frozenset[str] = frozenset()
    auxiliary_loss: bool = False
    residual: bool = True

    @property
    def extended_call(self) -> bool:
        """Whether ``forward`` takes ``size`` and ``info``."""
        return self.token_sizes or bool(self.gives)

    @property
    def offered(self) -> frozenset[str]:
        """What a token reduction can ask of it."""
        return self.gives | (frozenset({"token_sizes"}) if self.token_sizes else frozenset())


def attention_traits(spec: Spec) -> AttentionTraits:
    """The traits of a mixer; those of a plain module (no needs, no gifts) where it has none."""
    cls = REGISTRY.resolve(spec).cls
    return getattr(cls, "traits", AttentionTraits())


def bind_report(attention: Spec, report: frozenset[str]) -> Mechanism:
    """The mixer, built to report these things."""
    return REGISTRY.resolve(attention).bind(report=tuple(sorted(report)))


def list_attentions() -> list[str]:
    """Names of all registered token mixers, sorted."""
    return REGISTRY.names()


def create_attention(
    attention: Spec,
    dim: int,
    *,
    num_heads: int = 8,
    grid_size: tuple[int, int] | None = None,
    num_prefix_tokens: int = 1,
    **arguments: Any,
) -> nn.Module:
    """Build a token mixer, ``(B, N, dim) -> (B, N, dim)``.

    Args:
        attention: A registered name, a module class, or a ``functools.partial`` of one.
        dim: Channels.
        num_heads: Heads; mechanisms without heads of their own choosing ignore it and say so.
        grid_size: Rows and columns of patch tokens, for mechanisms that depend on them.
        num_prefix_tokens: Tokens in front of the patch tokens.
        **arguments: The rest of the interface (``qkv_bias``, ``qk_norm``, ``scale_norm``,
            ``proj_bias``, ``attn_drop``, ``proj_drop``, ``norm_layer``, ``report``, ``device``,
            ``dtype``) and the mechanism's own.

    Raises:
        ValueError: Unknown name, or a combination the mechanism cannot do.
        TypeError: An argument that the mechanism does not take.
    """
    if num_prefix_tokens and not attention_traits(attention).prefix_tokens:
        raise ValueError(
            f"{REGISTRY.resolve(attention).name} handles no prefix tokens, got "
            f"{num_prefix_tokens=}; in a ViT pass class_token=False, reg_tokens=0 and "
            f"global_pool='avg'"
        )
    return REGISTRY.create(
        attention,
        dim=dim,
        num_heads=num_heads,
        grid_size=grid_size,
        num_prefix_tokens=num_prefix_tokens,
        **arguments,
    )


# What follows is for authors of mechanisms.


def check_report(name: str, report: Sequence[str], gives: frozenset[str]) -> None:
    """Raise if a mixer is asked to report what it does not give."""
    unknown = sorted(set(report) - gives)
    if unknown:
        raise ValueError(f"{name} cannot report {unknown}; it gives {sorted(gives)}")


def check_heads(name: str, dim: int, num_heads: int) -> None:
    """Raise unless the channels divide among the heads."""
    if num_heads < 1 or dim % num_heads:
        raise ValueError(f"{name} needs dim divisible by num_heads, got dim={dim}, {num_heads=}")


def optional_norm(
    name: str, enabled: bool, norm_layer: type[nn.Module] | None, dim: int, **factory: Any
) -> nn.Module:
    """`norm_layer(dim)` for ``qk_norm`` and ``scale_norm``, the identity where they are off."""
    if not enabled:
        return nn.Identity()
    if norm_layer is None:
        raise ValueError(f"{name}: qk_norm and scale_norm need a norm_layer, got None")
    return norm_layer(dim, **factory)


@register_notrace_function
def refuse_mask(name: str, attn_mask: Optional[Tensor], is_causal: bool) -> None:
    """Raise if a mixer that mixes all tokens at once is given a mask (scriptable)."""
    if attn_mask is not None:
        raise ValueError(f"{name} has no attention matrix that attn_mask could mask; pass None")
    if is_causal:
        raise ValueError(f"{name} cannot be causal; pass is_causal=False")
