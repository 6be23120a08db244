"""FLOPs by module, as a tree, and what kind of work each module does."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import nn

#: What work is for, in the order of the tables. "other" are norms, residuals, masks, activations
#: and whatever else stands outside of the first five.
KINDS = ("embedding", "token mixing", "mlp", "reduction", "head", "other")


@dataclass(frozen=True)
class ModuleFlops:
    """Operations per image inside one module.

    Attributes:
        name: qualified name, "" for the whole model.
        class_name: name of its class.
        kind: one of `KINDS`; what its own operations count as.
        total: operations inside the module and those below it.
        own: those in its own forward pass alone, not in that of a module below.
        children: the modules right below, in their order. A module in several places is under its
            first name alone, with all that it does.
    """

    name: str
    class_name: str
    kind: str
    total: int
    own: int
    children: tuple["ModuleFlops", ...]

    def __getitem__(self, name: str) -> "ModuleFlops":
        """The node of a qualified name; "" is the whole model.

        Raises:
            KeyError: no module below this one has the name.
        """
        for node in self.walk():
            if node.name == name:
                return node
        below = ", ".join(repr(child.name) for child in self.children) or "nothing"
        raise KeyError(f"no module {name!r} below {self.name!r}, which has {below}")

    def walk(self) -> Iterator["ModuleFlops"]:
        """This node and all below it, each before its children."""
        yield self
        for child in self.children:
            yield from child.walk()


def module_tree(model: nn.Module, own: Mapping[str, int]) -> ModuleFlops:
    """The tree of a model whose modules have so many operations of their own, by name."""
    kinds = module_kinds(model)
    modules = dict(model.named_modules())
    children: dict[str, list[str]] = {name: [] for name in modules}
    for name in modules:
        if name:
            children[name.rpartition(".")[0]].append(name)

    def node(name: str) -> ModuleFlops:
        below = tuple(node(child) for child in children[name])
        mine = own.get(name, 0)
        return ModuleFlops(
            name=name,
            class_name=type(modules[name]).__name__,
            kind=kinds[name],
            total=mine + sum(child.total for child in below),
            own=mine,
            children=below,
        )

    return node("")


def by_kind(tree: ModuleFlops) -> dict[str, int]:
    """Operations by kind; all kinds are there, and their sum is the total."""
    sums = dict.fromkeys(KINDS, 0)
    for node in tree.walk():
        sums[node.kind] += node.own
    return sums


def module_kinds(model: nn.Module) -> dict[str, str]:
    """The kind of each module, by its qualified name.

    A module says it itself by an attribute ``flop_kind``, which holds for all below it up to the
    next one that says something else. For others timm's conventions do: the layers that its
    configuration calls the first and the classifier, then the names of attributes and classes, of
    which the outermost counts. What is left of convolutions and linear layers mixes tokens if its
    kernel is larger than one position, and is MLP otherwise.

    Raises:
        ValueError: a module announces what is not in `KINDS`.
    """
    configured = _configured(model)
    kinds: dict[str, str] = {}
    # Found for a module above, not only for this one.
    inherited: dict[str, str | None] = {}
    for name, module in model.named_modules():
        parent, _, last = name.rpartition(".")
        kind = _announced(name, module)
        if kind is None and name:
            kind = inherited[parent] or configured.get(name)
            kind = kind or _by_name(last, at_root=not parent) or _by_class(module)
        inherited[name] = kind
        kinds[name] = kind or _by_shape(module)
    return kinds


def _announced(name: str, module: nn.Module) -> str | None:
    kind: str | None = getattr(module, "flop_kind", None)
    if kind is not None and kind not in KINDS:
        raise ValueError(
            f"{type(module).__name__} {name!r} announces flop_kind={kind!r}; "
            f"accepted are {', '.join(KINDS)}"
        )
    return kind


def _configured(model: nn.Module) -> dict[str, str]:
    """Kinds by the names in timm's configuration, each a name or several."""
    config: object = getattr(model, "pretrained_cfg", None)
    kinds: dict[str, str] = {}
    if isinstance(config, Mapping):
        for key, kind in (("first_conv", "embedding"), ("classifier", "head")):
            names = config.get(key) or ()
            kinds |= dict.fromkeys([names] if isinstance(names, str) else names, kind)
    return kinds


# Names of attributes. A head is one only right below the model: "head" elsewhere is one of several.
_ROOT_NAMES = {"head": r"(aux_)?head.*|classifier|fc|fc_norm|global_pool|attn_pool|pool"}
_NAMES = {
    "embedding": r"(conv_)?stem.*|patch_embed.*|pos_embed.*|rel_pos.*_embed",
    "token mixing": r"(\w+_)?(attn|attention)\d?|(token_?)?mixer|mlp_tokens|local_mp|modulation",
    "mlp": r"mlp\d?|mlp_channels|ffn\d?|feed_forward",
    "reduction": r"downsample.*",
}
# Names of classes, for code that calls its attributes otherwise. A block is more than attention.
_CLASSES = {
    "head": r"\w*(ClassifierHead|AttentionPool\w*)",
    "embedding": r"\w*(PatchEmbed|Stem|PosEmbed)\w*|Embedding",
    "token mixing": (
        r"(?!\w*(Block|Layer|Stage|Pool))\w*(Attention|Attn|MHSA|MHCA|MLA|XCA|Modulation)\w*"
    ),
    "mlp": r"(?!\w*(Block|Layer|Stage))\w*(Mlp|MLP|Ffn|FFN|FeedForward)",
    "reduction": r"\w*(PatchMerging|Downsample)\w*",
}


def _by_name(name: str, *, at_root: bool) -> str | None:
    tables = [_ROOT_NAMES, _NAMES] if at_root else [_NAMES]
    return next((kind for table in tables for kind in _matching(table, name)), None)


def _by_class(module: nn.Module) -> str | None:
    return next(_matching(_CLASSES, type(module).__name__), None)


def _matching(table: Mapping[str, str], text: str) -> Iterator[str]:
    return (kind for kind, pattern in table.items() if re.fullmatch(pattern, text))


def _by_shape(module: nn.Module) -> str:
    if isinstance(module, nn.Linear):
        return "mlp"
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return "token mixing" if max(module.kernel_size) > 1 else "mlp"
    return "other"
