"""From three names to a ViT: which argument is whose, and which class it takes."""

import inspect
from typing import Any

from timm.layers import Attention, DiffAttention
from timm.models import VisionTransformer
from torch import nn

from efficient_vits._registry import Spec
from efficient_vits.attention import _interface as attention_axis
from efficient_vits.mlp import _interface as mlp_axis
from efficient_vits.models.block import Block
from efficient_vits.models.reduced import ReducedViT
from efficient_vits.models.vit import ComposableViT, is_our_block
from efficient_vits.reduction import _interface as reduction_axis

REGISTRIES = {
    r.axis: r for r in (attention_axis.REGISTRY, reduction_axis.REGISTRY, mlp_axis.REGISTRY)
}
VIT_PARAMETERS = frozenset(inspect.signature(VisionTransformer).parameters)
TIMM_ATTENTIONS: dict[str, type[nn.Module]] = {
    "": Attention,
    "attn": Attention,
    "diff": DiffAttention,
}


def create_vit(
    *,
    attention: Spec | None = None,
    reduction: Spec | None = None,
    mlp: Spec | None = None,
    prop_attn: bool | None = None,
    **arguments: Any,
) -> "ComposableViT":
    """Build a ViT from its three axes.

    Args:
        attention: Token mixer: a registered name, a class or a ``functools.partial``; softmax
            attention by default.
        reduction: Token reduction, likewise; none by default.
        mlp: MLP block, likewise; the plain MLP by default.
        prop_attn: Weigh merged tokens by their size in the attention. By default wherever the
            attention can.
        **arguments: Everything that timm's `VisionTransformer` takes, and the three mechanisms' own
            arguments.

    Raises:
        ValueError: Unknown mechanism, or mechanisms that do not go together.
        TypeError: An argument that neither the ViT nor one of the mechanisms takes.
    """
    attention = _alias(attention, "attention", arguments.pop("attn_layer", None), "attn_layer")
    mlp = _alias(mlp, "mlp", arguments.pop("mlp_layer", None), "mlp_layer")
    axes = {"attention": attention or "softmax", "reduction": reduction, "mlp": mlp or "mlp"}
    chosen: dict[str, Any]
    chosen = {a: REGISTRIES[a].resolve(spec) for a, spec in axes.items() if spec is not None}
    chosen, arguments = _distribute(chosen, arguments)
    if reduction is not None:
        return ReducedViT(**arguments, **chosen, prop_attn=prop_attn)
    if prop_attn is not None:
        raise TypeError(f"prop_attn={prop_attn} needs a reduction; tokens have no sizes without")
    foreign_block = not is_our_block(arguments.get("block_fn", Block))
    if foreign_block and (attention is not None or mlp is not None):
        raise TypeError(
            "block_fn replaces the block that holds attention and mlp; pass either block_fn or "
            "these, not both"
        )
    return ComposableViT(**arguments, **chosen)


def _alias(spec: Spec | None, name: str, theirs: Any, timm_name: str) -> Spec | None:
    """`spec`, or what came under timm's name for the same thing."""
    if theirs is None:
        return spec
    if spec is not None:
        raise TypeError(f"{name} and {timm_name} name the same thing; pass one of them")
    if isinstance(theirs, str) and theirs in TIMM_ATTENTIONS and timm_name == "attn_layer":
        return TIMM_ATTENTIONS[theirs]
    return theirs


def _distribute(
    chosen: dict[str, Any], arguments: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Bind the mechanisms' own arguments to them; what is left is the ViT's."""
    own = {axis: REGISTRIES[axis].own_parameters(m) for axis, m in chosen.items()}
    rest = {}
    for name, value in arguments.items():
        owners = [axis for axis, names in own.items() if name in names]
        if name in VIT_PARAMETERS:
            rest[name] = value
        elif len(owners) == 1:
            chosen = {**chosen, owners[0]: chosen[owners[0]].bind(**{name: value})}
        elif owners:
            raise TypeError(
                f"{name!r} is an argument of {' and '.join(chosen[a].name for a in owners)}; "
                f"bind it with functools.partial to the one that is meant"
            )
        else:
            theirs = "; ".join(
                f"{chosen[axis].name}: {', '.join(names) or 'none'}" for axis, names in own.items()
            )
            raise TypeError(
                f"unexpected argument {name}={value!r}. Own arguments of {theirs}. "
                f"Arguments of the ViT: {', '.join(sorted(VIT_PARAMETERS))}"
            )
    return chosen, rest
