"""What every token reduction has in common: its registry and its traits."""

import inspect
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from efficient_vits._registry import Registry, Spec

REGISTRY = Registry(
    "reduction",
    interface={
        "dim": inspect.Parameter.empty,
        "depth": inspect.Parameter.empty,
        "block": inspect.Parameter.empty,
        "num_prefix_tokens": 1,
        "num_heads": 8,
        "grid_size": None,
        "device": None,
        "dtype": None,
    },
    hints=frozenset({"num_prefix_tokens", "num_heads", "grid_size", "device", "dtype"}),
)
register_reduction = REGISTRY.register

# What an attention fills the dict `info` with, if it is asked to.
REPORTS = frozenset({"keys", "class_attention", "attention"})


@dataclass(frozen=True)
class ReductionTraits:
    """What a reduction needs and where it stands, declared as its class attribute ``traits``.

    Attributes:
        place: Where in the block it runs: ``"before"`` the block, ``"between"`` attention and MLP,
            ``"after"`` the block.
        needs: What the attention of its block must report: ``"keys"``, ``"class_attention"``,
            ``"attention"``; and ``"token_sizes"`` where it must weigh tokens by their size.
        sizes: It produces token sizes.
        sizes_count: These are numbers of patches. Without, they are weights of any value.
        state: It hands tensors of its own from block to block, in ``info``, one entry per token:
            it cannot stand beside another reduction, which would move the tokens away under them.
        auxiliary_loss: It leaves a term for `efficient_vits.auxiliary_loss`.
        prefix: It works on prefix tokens, so that there must be one.
        grid: It works on the grid of patches, so that no other may run before it.
        plain_weights: A trained ViT's weights are right for it as they are.
    """

    place: Literal["before", "between", "after"] = "between"
    needs: frozenset[str] = frozenset()
    sizes: bool = False
    sizes_count: bool = True
    state: bool = False
    auxiliary_loss: bool = False
    prefix: bool = False
    grid: bool = False
    plain_weights: bool = False

    @property
    def needs_prefix(self) -> bool:
        """Whether there must be a prefix token."""
        return self.prefix or "class_attention" in self.needs

    def __post_init__(self) -> None:
        if self.place == "before" and self.needs & REPORTS:
            raise ValueError("before its block there is no attention that could report anything")


def reduction_traits(spec: Spec) -> ReductionTraits:
    """The traits of a reduction."""
    cls = REGISTRY.resolve(spec).cls
    return getattr(cls, "traits", ReductionTraits())


def list_reductions() -> list[str]:
    """Names of all registered token reductions, sorted."""
    return REGISTRY.names()


def create_reduction(
    reduction: Spec,
    dim: int,
    depth: int,
    block: int,
    *,
    num_prefix_tokens: int = 1,
    grid_size: tuple[int, int] | None = None,
    **arguments: Any,
) -> nn.Module:
    """Build the token reduction of one block.

    Its call is ``forward(x, size, source, info) -> (x, size, source)`` with x (B, N, dim), size
    (B, N, 1) or None (every token is one patch), source (B, N0) or None (not tracked): the token
    that each of the N0 input patches went to, -1 if dropped. ``info`` is a dict of what the
    attention reported; what a reduction adds to it reaches the later blocks. ``num_tokens(n)`` is
    the number of tokens that n tokens become, prefix tokens included, or None where it depends on
    the image. One that does nothing in its block says so by ``active = False``. One that ties
    blocks together does so in ``arrange(blocks)``, called once when the model is complete.

    Args:
        reduction: A registered name, a module class, or a ``functools.partial`` of one.
        dim: Channels.
        depth: Number of blocks of the model.
        block: Which of them this one is, from 0.
        num_prefix_tokens: Tokens at the front that are never reduced.
        grid_size: Rows and columns of the patch tokens before the first block. One that goes by
            them has ``set_grid_size(grid_size)``, called where the input size changes.
        **arguments: ``num_heads`` of the model's blocks, ``device``, ``dtype`` and the mechanism's
            own.

    Raises:
        ValueError: Unknown name, or values the mechanism refuses.
        TypeError: An argument that the mechanism does not take.
    """
    traits = reduction_traits(reduction)
    if num_prefix_tokens == 0 and traits.needs_prefix:
        does = "works on" if traits.prefix else "goes by the attention of"
        raise ValueError(
            f"{REGISTRY.resolve(reduction).name} {does} the class token; there is no prefix token"
        )
    return REGISTRY.create(
        reduction,
        dim=dim,
        depth=depth,
        block=block,
        num_prefix_tokens=num_prefix_tokens,
        grid_size=grid_size,
        **arguments,
    )
