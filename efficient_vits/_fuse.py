"""Folding a model for inference: norms into convolutions, parallel branches into one.

Two things fold. A module that knows how to fold itself says so by a method without arguments:
``fuse()``, which returns what takes its place, or None where it changes itself, or timm's
``reparameterize()`` and ``switch_to_deploy()``. Everywhere else the forward pass of each module is
traced on its own, with the modules inside it as black boxes, and a batch norm is folded wherever
the graph shows that nothing but the norm reads what the convolution gives. No names are guessed,
and what cannot be traced stays as it is.
"""

import contextlib
import copy
import functools
import inspect
import operator
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeVar

import torch
from timm.layers import (
    BatchNormAct2d,
    Conv2dSame,
    FrozenBatchNormAct2d,
    SyncBatchNormAct,
    get_notrace_functions,
)
from torch import Tensor, fx, nn
from torchvision.ops import FrozenBatchNorm2d

from efficient_vits._numerics import widen

M = TypeVar("M", bound=nn.Module)

# The classes themselves: a subclass may do anything, such as standardise its weights.
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, Conv2dSame)
_NORMS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    BatchNormAct2d,
    SyncBatchNormAct,
    FrozenBatchNormAct2d,
    FrozenBatchNorm2d,
)
_IDENTITIES = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_METHODS = ("fuse", "reparameterize", "switch_to_deploy")
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def fuse(model: nn.Module, inplace: bool = False) -> nn.Module:
    """Fold what folds in a model, for inference: fewer layers and parameters, equal outputs.

    - Batch norms go into the convolution before them, or into one after them that does not pad
      with zeros. timm's norms with an activation leave the activation.
    - Parallel branches become one convolution where timm has a method for it (RepVGG, MobileOne,
      FastViT, RepViT, LeViT, GhostNetV3 and others).
    - SLAB's norms go into the linear layers that follow, or become a scale and a shift.

    What stays: a convolution or a norm that is used in two places, norms without running
    statistics, all that carries hooks or parametrizations (these would see other values), linear
    layers with a batch norm outside of timm's modules for it (which axis it normalises depends on
    the input), and pairs inside a module that cannot be traced.

    Args:
        model: Any module; in training mode its evaluation is what is folded.
        inplace: Change the model itself instead of a copy. Use what is returned nevertheless: a
            module that is one pair as a whole has another in its place.

    Returns:
        The folded model, in evaluation mode, on the same device and of the same dtype. Its outputs
        are the model's in evaluation up to rounding. A second time changes nothing.
        `fused_modules` tells what was folded.

    Raises:
        ValueError: `inplace` for a model in training mode, which would lose its norms.
    """
    if inplace and model.training:
        raise ValueError("fuse(inplace=True) ends the training of a model; call model.eval() first")
    if not inplace:
        model = _copied(model)
        model.eval()  # some of timm's modules return nothing from it
    before = _holders(model)
    with torch.no_grad():
        fused = _fold_by_methods(model)
        fused.eval()
        _fold_pairs(fused)
        fused.eval()
    after = _holders(fused)
    gone = tuple(name for name, kind in before.items() if after.get(name) is not kind)
    # Read by `fused_modules`; a model folded before, or loaded, keeps its account.
    fused._fused_modules = (*fused_modules(model), *gone)  # type: ignore[assignment]
    return fused


def fused_modules(model: nn.Module) -> tuple[str, ...]:
    """Names of the modules that `fuse` folded into others, as they were before.

    Only those with parameters or buffers of their own are listed. A model that `fuse` did not
    return has none.
    """
    names: tuple[str, ...] = getattr(model, "_fused_modules", ())
    return names


def _holders(model: nn.Module) -> dict[str, type[nn.Module]]:
    """Classes of the modules that hold tensors themselves, by name."""
    return {
        name: type(module)
        for name, module in model.named_modules()
        if [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    }


def _copied(model: M, *, share: bool = False) -> M:
    """A deep copy; with `share` of everything but the parameters and buffers.

    Results of an earlier pass that modules keep, such as terms of a loss, are copied without their
    history, which torch refuses to copy.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for value in vars(module).values():
            kept = value.values() if isinstance(value, dict) else [value]
            memo |= {id(t): t.detach() for t in kept if isinstance(t, Tensor) and not t.is_leaf}
    if share:
        memo |= {id(t): t for t in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, memo)


# Modules that fold themselves


def _fold_by_methods(module: nn.Module) -> nn.Module:
    """Ask a module, then those inside what it has become."""
    module = _asked(module)
    for name, child in list(module.named_children()):
        folded = _fold_by_methods(child)
        if folded is not child:
            setattr(module, name, folded)
    return module


def _asked(module: nn.Module) -> nn.Module:
    method = _method(module)
    if method is None or any(_is_touched(inner) for inner in module.modules()):
        return module
    kinds = {(t.device, t.dtype) for t in module.parameters()}
    # Some of timm's methods say neither where to build their layers nor of which dtype.
    device, dtype = kinds.pop() if len(kinds) == 1 else (None, None)
    with device or contextlib.nullcontext():
        result = method()
    folded: nn.Module = result if isinstance(result, nn.Module) else module
    return folded.to(dtype=dtype) if dtype else folded


def _method(module: nn.Module) -> Any:
    if getattr(module, "reparam_conv", None) is not None:
        return None  # folded already, which not all of timm's methods look at
    for name in _METHODS:
        method = getattr(module, name, None)
        if inspect.ismethod(method) and not inspect.signature(method).parameters:
            return method
    return None


def _is_touched(module: nn.Module) -> bool:
    """Whether somebody hooked into a module or computes its parameters."""
    return any(getattr(module, name, None) for name in _HOOKS) or hasattr(
        module, "parametrizations"
    )


# Pairs found by tracing


class _Pair(NamedTuple):
    norm_is_first: bool  # sorted, the others come first
    convolution: str
    norm: str


class _Tracer(fx.Tracer):
    """Records what a module does with those inside it; of these, it looks into plain sequences."""

    proxy_buffer_attributes = True

    def __init__(self) -> None:
        super().__init__(autowrap_functions=tuple(get_notrace_functions()))
        self.sequences: set[str] = set()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if type(m) is not nn.Sequential or _is_touched(m):
            return True
        self.sequences.add(module_qualified_name)
        return False


def _traced(module: nn.Module) -> tuple[list[fx.Graph], set[str]]:
    """The forward pass, with its options given and with their defaults, and the sequences in it.

    Nothing if it cannot be traced.
    """
    parameters = inspect.signature(module.forward).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    tracer = _Tracer()
    try:
        graphs = [tracer.trace(module, a) for a in ([None, defaults] if defaults else [None])]
    except Exception:  # a forward pass may raise anything when its inputs are no tensors
        return [], set()
    return graphs, tracer.sequences


def _pairs(model: nn.Module) -> list[_Pair]:
    """Convolutions and norms that see each other's values and nobody else's."""
    # Tracing runs the code of the modules, which may leave something in their attributes.
    skeleton = _copied(model, share=True)
    modules = dict(skeleton.named_modules(remove_duplicate=False))
    places = Counter(map(id, modules.values()))
    uses: Counter[str] = Counter()
    found: list[_Pair] = []
    seen: set[str] = set()
    for owner, module in modules.items():  # outer ones first
        if owner in seen or not any(module.children()):
            continue
        prefix = f"{owner}." if owner else ""
        graphs, sequences = _traced(module)
        seen |= {prefix + name for name in sequences}
        if graphs:
            found += set.intersection(*(set(_adjacent(g, modules, prefix)) for g in graphs))
            counts = [Counter(_used(graph, prefix)) for graph in graphs]
            uses += functools.reduce(operator.or_, counts)
    alone = {name for name, m in modules.items() if uses[name] == places[id(m)] == 1}
    return sorted(pair for pair in found if {pair.convolution, pair.norm} <= alone)


def _used(graph: fx.Graph, prefix: str) -> Iterator[str]:
    """Names of the modules that are called, or whose tensors others read."""
    for node in graph.nodes:
        if node.op == "call_module":
            yield f"{prefix}{node.target}"
        elif node.op == "get_attr" and "." in node.target:
            yield prefix + node.target.rpartition(".")[0]


def _adjacent(graph: fx.Graph, modules: dict[str, nn.Module], prefix: str) -> Iterator[_Pair]:
    """Pairs in which one alone reads what the other gives."""

    def called(node: fx.Node) -> type[nn.Module] | None:
        return type(modules[f"{prefix}{node.target}"]) if node.op == "call_module" else None

    for node in graph.nodes:
        kind = called(node)
        if kind not in (*_CONVOLUTIONS, *_NORMS) or len(node.all_input_nodes) != 1:
            continue
        source = node.all_input_nodes[0]
        while called(source) in _IDENTITIES and len(source.users) == 1:
            source = source.all_input_nodes[0]
        if len(source.users) != 1:
            continue
        last, first = f"{prefix}{node.target}", f"{prefix}{source.target}"
        if kind in _NORMS and called(source) in _CONVOLUTIONS:
            yield _Pair(False, first, last)
        elif kind in _CONVOLUTIONS and called(source) in _NORMS:
            yield _Pair(True, last, first)


def _fold_pairs(model: nn.Module) -> None:
    """Fold until nothing folds: what a norm leaves may bring two others together."""
    while any(type(module) in _NORMS for module in model.modules()):
        if not sum(_fold(model, pair) for pair in _pairs(model)):
            return


def _fold(model: nn.Module, pair: _Pair) -> bool:
    """Fold one pair, unless it is not what it seems or an earlier one took its norm."""
    convolution: Any = model.get_submodule(pair.convolution)
    norm = model.get_submodule(pair.norm)
    affine = _affine(norm)
    rest = _rest(norm)
    if affine is None or _is_touched(convolution) or _is_touched(norm):
        return False
    scale, shift = affine
    weight, bias = widen(convolution.weight), convolution.bias
    bias = weight.new_zeros(len(weight)) if bias is None else widen(bias)
    if pair.norm_is_first:
        if not _sees_no_zeros(convolution) or not isinstance(rest, nn.Identity):
            return False
        if len(scale) != convolution.in_channels:
            return False
        # (groups, inputs of a group) -> one row for each output of the group
        groups = convolution.groups
        scale, shift = (
            z.reshape(groups, -1).repeat_interleave(len(weight) // groups, dim=0)
            for z in (scale, shift)
        )
        bias = bias + (weight.flatten(2).sum(dim=2) * shift).sum(dim=1)
    else:
        if len(scale) != len(weight):
            return False
        bias = bias * scale + shift
        scale = scale.unsqueeze(1)
    weight = weight * scale.reshape(*scale.shape, *[1] * (weight.ndim - 2))
    old = convolution.weight
    for name, value in (("weight", weight), ("bias", bias)):
        parameter = nn.Parameter(value.to(old.dtype), requires_grad=old.requires_grad)
        setattr(convolution, name, parameter)
    parent, _, name = pair.norm.rpartition(".")
    setattr(model.get_submodule(parent), name, rest)
    return True


def _affine(norm: Any) -> tuple[Tensor, Tensor] | None:
    """Scale and shift of a batch norm in evaluation; None where it is none or has no statistics."""
    if type(norm) not in _NORMS or norm.running_mean is None or norm.running_var is None:
        return None
    scale = torch.rsqrt(widen(norm.running_var) + norm.eps)
    if norm.weight is not None:
        scale = scale * widen(norm.weight)
    shift = -scale * widen(norm.running_mean)
    return scale, shift if norm.bias is None else shift + widen(norm.bias)


def _rest(norm: nn.Module) -> nn.Module:
    """What a norm does after its affine map."""
    after = [getattr(norm, name, None) for name in ("drop", "act")]
    parts = [m for m in after if isinstance(m, nn.Module) and not isinstance(m, _IDENTITIES)]
    if not parts:
        return nn.Identity()
    return parts[0] if len(parts) == 1 else nn.Sequential(*parts)


def _sees_no_zeros(convolution: Any) -> bool:
    """Whether the input's border is no other than the rest: padded zeros pass by a norm."""
    if type(convolution) is Conv2dSame:
        return False
    padding = convolution.padding
    unpadded = padding == "valid" if isinstance(padding, str) else not any(padding)
    return unpadded or bool(convolution.padding_mode != "zeros")
