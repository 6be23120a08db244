"""From three names to a ViT: which argument is whose, and which class it takes."""

import inspect
from collections.abc import Sequence
from typing import Any

from timm.layers import Attention, DiffAttention
from timm.models import VisionTransformer
from torch import nn

from efficient_vits._registry import Mechanism, Spec
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
    reduction: Spec | Sequence[Spec] | None = None,
    mlp: Spec | None = None,
    prop_attn: bool | None = None,
    **arguments: Any,
) -> "ComposableViT":
    """Build a ViT from its three axes.

    Args:
        attention: Token mixer: a registered name, a class or a ``functools.partial``; softmax
            attention by default.
        reduction: Token reduction, likewise, or several of them in the order in which they run;
            none by default.
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
    reductions = [] if reduction is None else as_list(reduction)
    chosen = [
        ("attention", REGISTRIES["attention"].resolve(attention or "softmax")),
        *(("reduction", REGISTRIES["reduction"].resolve(one)) for one in reductions),
        ("mlp", REGISTRIES["mlp"].resolve(mlp or "mlp")),
    ]
    chosen, arguments = _distribute(chosen, arguments)
    mixer, *reducers, tokenwise = [mechanism for _, mechanism in chosen]
    arguments.update(attention=mixer, mlp=tokenwise)
    if reduction is not None:
        return ReducedViT(**arguments, reduction=reducers, prop_attn=prop_attn)
    if prop_attn is not None:
        raise TypeError(f"prop_attn={prop_attn} needs a reduction; tokens have no sizes without")
    foreign_block = not is_our_block(arguments.get("block_fn", Block))
    if foreign_block and (attention is not None or mlp is not None):
        raise TypeError(
            "block_fn replaces the block that holds attention and mlp; pass either block_fn or "
            "these, not both"
        )
    return ComposableViT(**arguments)


def _alias(spec: Spec | None, name: str, theirs: Any, timm_name: str) -> Spec | None:
    """`spec`, or what came under timm's name for the same thing."""
    if theirs is None:
        return spec
    if spec is not None:
        raise TypeError(f"{name} and {timm_name} name the same thing; pass one of them")
    if isinstance(theirs, str) and theirs in TIMM_ATTENTIONS and timm_name == "attn_layer":
        return TIMM_ATTENTIONS[theirs]
    return theirs


def as_list(reduction: Spec | Sequence[Spec]) -> list[Spec]:
    """One reduction, or several, as a list."""
    return list(reduction) if isinstance(reduction, list | tuple) else [reduction]  # type: ignore[list-item]


def _distribute(
    chosen: Sequence[tuple[str, Mechanism]], arguments: dict[str, Any]
) -> tuple[list[tuple[str, Mechanism]], dict[str, Any]]:
    """Bind the mechanisms' own arguments to them; what is left is the ViT's."""
    chosen = list(chosen)
    own = [REGISTRIES[axis].own_parameters(mechanism) for axis, mechanism in chosen]
    rest = {}
    for name, value in arguments.items():
        owners = [i for i, names in enumerate(own) if name in names]
        if name in VIT_PARAMETERS:
            rest[name] = value
        elif len(owners) == 1:
            axis, mechanism = chosen[owners[0]]
            chosen[owners[0]] = axis, mechanism.bind(**{name: value})
        elif owners:
            raise TypeError(
                f"{name!r} is an argument of {' and '.join(chosen[i][1].name for i in owners)}; "
                f"bind it with functools.partial to the one that is meant"
            )
        else:
            theirs = "; ".join(
                f"{mechanism.name}: {', '.join(names) or 'none'}"
                for (_, mechanism), names in zip(chosen, own, strict=True)
            )
            raise TypeError(
                f"unexpected argument {name}={value!r}. Own arguments of {theirs}. "
                f"Arguments of the ViT: {', '.join(sorted(VIT_PARAMETERS))}"
            )
    return chosen, rest
