"""Another attention in a model that is already there."""

import functools
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from efficient_vits._registry import Spec
from efficient_vits.attention import attention_traits, create_attention
from efficient_vits.models.block import ReducedBlock

# What hosts tell their attention about positions, and a mechanism of ours has no use for.
POSITION_ARGUMENTS = frozenset({"rope", "shared_rel_pos_bias", "shared_rel_pos"})


@dataclass(frozen=True)
class Replaced:
    """What `replace_attention` did, by the parameters' names in the model.

    Attributes:
        kept: Parameters of the new attention that have the old one's values.
        new: Parameters of the new attention that are freshly initialised.
        dropped: Parameters of the old attention that are gone.
    """

    kept: list[str]
    new: list[str]
    dropped: list[str]


def replace_attention(
    model: nn.Module,
    attention: Spec,
    blocks: Sequence[int] | None = None,
    **own: Any,
) -> Replaced:
    """Put another attention into the blocks of a timm model, in place.

    The model must follow timm's convention: ``blocks`` with an ``attn`` each that has
    ``num_heads``, ``qkv`` (or ``q_proj``, ``k_proj``, ``v_proj``) and ``proj``; ViT, DeiT, EVA and
    BEiT do. Where the new attention has ``qkv`` and ``proj``, they keep their values. Device,
    dtype, dropout rates, training mode and whether parameters are trainable stay. Rotary embeddings
    and relative position biases that the host hands to its attention are not used by the new one.

    Args:
        model: The model. It is changed only when all blocks can be.
        attention: A registered name, a class, or a ``functools.partial`` of one.
        blocks: Indices of the blocks; negative ones count from the end. All by default.
        **own: The mechanism's own arguments.

    Returns:
        What was kept, what is new, what was dropped.

    Raises:
        ValueError: An index outside the model, or what the mechanism refuses.
        TypeError: A model or layer that does not follow the convention; the layer is named.
    """
    hosts = getattr(model, "blocks", None)
    if not isinstance(hosts, nn.Sequential | nn.ModuleList):
        raise TypeError(f"{type(model).__name__} has no sequence of blocks to replace attention in")
    indices = range(len(hosts)) if blocks is None else [_index(i, len(hosts)) for i in blocks]
    built: dict[int, nn.Module] = {}
    account = Replaced([], [], [])
    for index in indices:
        name = f"blocks.{index}.attn"
        host: Any = hosts[index]
        old = _convention(host, name)
        new = _build(model, old, attention, index, own)
        _carry_over(old, new, name, account)
        built[index] = new
    for index, module in built.items():
        hosts[index].attn = module
    return account


def _index(index: int, depth: int) -> int:
    if not -depth <= index < depth:
        raise ValueError(f"block {index} is outside of a model with {depth} blocks")
    return index % depth


def _convention(block: nn.Module, name: str) -> Any:
    """The block's attention, if we know what it is made of."""
    if isinstance(block, ReducedBlock):
        raise TypeError(
            f"{name} works together with a token reduction; create the model with attention=..."
        )
    attn: Any = getattr(block, "attn", None)
    if attn is None:
        raise TypeError(f"{type(block).__name__} has no layer {name}")
    has_qkv = all(getattr(attn, p, None) is not None for p in ("q_proj", "k_proj", "v_proj"))
    has_qkv = has_qkv or getattr(attn, "qkv", None) is not None
    if not has_qkv or not hasattr(attn, "num_heads") or not hasattr(attn, "proj"):
        raise TypeError(
            f"{name} is a {type(attn).__name__} without num_heads, qkv (or q_proj, k_proj, v_proj) "
            f"and proj"
        )
    if getattr(attn, "gate", None) is not None or attn.proj.in_features != attn.proj.out_features:
        raise TypeError(f"{name} is gated or changes its width, which no other attention does")
    return attn


def _build(model: Any, old: Any, attention: Spec, index: int, own: Mapping[str, Any]) -> nn.Module:
    norms = {"qk_norm": getattr(old, "q_norm", None), "scale_norm": getattr(old, "norm", None)}
    norms = {k: v for k, v in norms.items() if v is not None and not isinstance(v, nn.Identity)}
    norm_layer = None
    if norms:
        first: Any = next(iter(norms.values()))
        eps = {"eps": first.eps} if hasattr(first, "eps") else {}
        norm_class: Any = type(first)
        norm_layer = functools.partial(norm_class, **eps)
    bias = _qkv(old)[1]
    arguments: dict[str, Any] = {
        "num_heads": old.num_heads,
        "qkv_bias": bias is not None,
        "proj_bias": old.proj.bias is not None,
        "attn_drop": _rate(old, "attn_drop"),
        "proj_drop": _rate(old, "proj_drop"),
        "norm_layer": norm_layer,
        "num_prefix_tokens": getattr(model, "num_prefix_tokens", 1),
        "depth": index,
        "device": old.proj.weight.device,
        "dtype": old.proj.weight.dtype,
        **dict.fromkeys(norms, True),
    }
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if grid is not None:
        arguments["grid_size"] = tuple(grid)
    traits = attention_traits(attention)
    if (traits.token_count or traits.grid) and getattr(model, "dynamic_img_size", False):
        raise ValueError("the mechanism is bound to the grid; the model has dynamic_img_size=True")
    new = create_attention(attention, old.proj.out_features, **arguments, **own)
    new.train(old.training)
    if POSITION_ARGUMENTS & inspect.signature(old.forward).parameters.keys():
        new.register_forward_pre_hook(_drop_positions, with_kwargs=True)
    return new


def _rate(old: nn.Module, name: str) -> float:
    drop = getattr(old, name, None)
    return float(getattr(drop, "p", 0.0))


def _drop_positions(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, {k: v for k, v in kwargs.items() if k not in POSITION_ARGUMENTS}


def _qkv(old: Any) -> tuple[Tensor, Tensor | None]:
    """Weight (3 C, C) and bias (3 C) or None of the old projection to queries, keys and values."""
    if getattr(old, "qkv", None) is not None:
        weight, bias = old.qkv.weight, old.qkv.bias
        parts = [getattr(old, f"{p}_bias", None) for p in "qkv"]
    else:
        layers = [old.q_proj, old.k_proj, old.v_proj]
        weight, bias = torch.cat([layer.weight for layer in layers]), None
        parts = [layer.bias for layer in layers]
    if bias is None and any(part is not None for part in parts):
        zeros = weight.new_zeros(len(weight) // 3)
        bias = torch.cat([zeros if part is None else part for part in parts])
    return weight, bias


@torch.no_grad()
def _carry_over(old: Any, new: nn.Module, name: str, account: Replaced) -> None:
    """Copy what both have, and write down what became of every parameter."""
    trainable = old.proj.weight.requires_grad
    theirs = dict(old.named_parameters())
    weight, bias = _qkv(old)
    theirs = {**theirs, "qkv.weight": weight, **({} if bias is None else {"qkv.bias": bias})}
    taken = set()
    for key, parameter in new.named_parameters():
        parameter.requires_grad_(trainable)
        value = theirs.get(key)
        if value is not None and value.shape == parameter.shape:
            parameter.copy_(value)
            taken.add(key)
            account.kept.append(f"{name}.{key}")
        else:
            account.new.append(f"{name}.{key}")
    fused = {"q_proj", "k_proj", "v_proj", "q_bias", "k_bias", "v_bias"}
    for key in dict(old.named_parameters()):
        if key not in taken and not (key.split(".")[0] in fused and "qkv.weight" in taken):
            account.dropped.append(f"{name}.{key}")
