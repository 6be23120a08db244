"""What every MLP block has in common: its registry and its traits."""

import inspect
from dataclasses import dataclass
from typing import Any

from torch import nn

from efficient_vits._registry import Registry, Spec

REGISTRY = Registry(
    "mlp",
    interface={
        "in_features": inspect.Parameter.empty,
        "hidden_features": None,
        "act_layer": nn.GELU,
        "norm_layer": None,
        "bias": True,
        "drop": 0.0,
        "device": None,
        "dtype": None,
    },
    hints=frozenset({"device", "dtype"}),
)
register_mlp = REGISTRY.register


@dataclass(frozen=True)
class MlpTraits:
    """What an MLP block can do, declared as its class attribute ``traits``.

    Attributes:
        auxiliary_loss: It leaves a term for `efficient_vits.auxiliary_loss`.
    """

    auxiliary_loss: bool = False


def mlp_traits(spec: Spec) -> MlpTraits:
    """The traits of an MLP block; those of a plain module where it has none."""
    cls = REGISTRY.resolve(spec).cls
    return getattr(cls, "traits", MlpTraits())


def list_mlps() -> list[str]:
    """Names of all registered MLP blocks, sorted."""
    return REGISTRY.names()


def create_mlp(
    mlp: Spec, in_features: int, hidden_features: int | None = None, **arguments: Any
) -> nn.Module:
    """Build an MLP block, ``(B, N, in_features) -> (B, N, in_features)``.

    Args:
        mlp: A registered name, a module class, or a ``functools.partial`` of one.
        in_features: Channels in and out.
        hidden_features: Channels in between; those of the input by default.
        **arguments: The rest of the interface (``act_layer``, ``norm_layer``, ``bias``, ``drop``,
            ``device``, ``dtype``) and the mechanism's own.

    Raises:
        ValueError: Unknown name, or a combination the mechanism cannot do.
        TypeError: An argument that the mechanism does not take.
    """
    return REGISTRY.create(
        mlp, in_features=in_features, hidden_features=hidden_features, **arguments
    )
