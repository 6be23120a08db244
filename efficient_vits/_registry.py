"""Named, interchangeable classes: the machinery behind attention, reduction and MLP alike."""

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from torch import nn

if TYPE_CHECKING:
    from efficient_vits.catalog import Paper

ModuleType = TypeVar("ModuleType", bound=type[nn.Module])


@dataclass(frozen=True)
class Entry:
    """One registered mechanism.

    Attributes:
        name: Name it is created by.
        cls: The class.
        models: ViT variants it brings, as name pattern (with ``{size}``) -> the mechanism's own
            arguments.
        vit: Arguments of the ViT that these variants need, where they differ from the paper's ViT.
        sizes: Arguments of the ViT for each size, for mechanisms with sizes of their own.
        paper: Its source, for mechanisms that the packaged catalog does not know.
    """

    name: str
    cls: type[nn.Module]
    models: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    vit: Mapping[str, Any] = field(default_factory=dict)
    sizes: Mapping[str, Mapping[str, Any]] | None = None
    paper: "Paper | None" = None


@dataclass(frozen=True)
class Mechanism:
    """A class with arguments bound to it: what a name, a class or a partial stands for."""

    name: str
    cls: type[nn.Module]
    bound: Mapping[str, Any] = field(default_factory=dict)

    def bind(self, **arguments: Any) -> "Mechanism":
        """The same mechanism with further arguments bound; later ones win."""
        return Mechanism(self.name, self.cls, {**self.bound, **arguments})

    @functools.cached_property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """The constructor's parameters by name, ``self`` left out."""
        return inspect.signature(self.cls).parameters

    @property
    def takes_any(self) -> bool:
        return any(p.kind is p.VAR_KEYWORD for p in self.parameters.values())


Spec: TypeAlias = str | type[nn.Module] | functools.partial[nn.Module] | Mechanism


class Registry:
    """A set of classes that share one constructor interface.

    Args:
        axis: What is registered, as it is called in messages ("attention").
        interface: The constructor parameters that every class shares, with their defaults.
            Parameters without a default map to ``inspect.Parameter.empty``.
        hints: Those of them that only inform (the grid, the block's index): a class that has no use
            for one may leave it out of its signature.
    """

    def __init__(
        self, axis: str, interface: Mapping[str, Any], hints: frozenset[str] = frozenset()
    ) -> None:
        self.axis = axis
        self.interface = dict(interface)
        self.hints = hints
        self._entries: dict[str, Entry] = {}
        self._listeners: list[Callable[[Registry, Entry], None]] = []

    def register(
        self,
        name: str,
        *,
        models: Mapping[str, Mapping[str, Any]] | None = None,
        vit: Mapping[str, Any] | None = None,
        sizes: Mapping[str, Mapping[str, Any]] | None = None,
        paper: "Paper | None" = None,
    ) -> Callable[[ModuleType], ModuleType]:
        """Class decorator: make a class available under `name`.

        Args:
            name: Name to register.
            models: ViT variants to offer in timm's registry, as name pattern -> own arguments;
                ``{size}`` in the pattern becomes ``ti16``, ``s16``, ``b16``, ``l16``. By default
                one variant called after the mechanism.
            vit: Arguments of the ViT for these variants.
            sizes: Arguments of the ViT for each size, such as ``{"xs": {"embed_dim": 384, ...}}``,
                where a mechanism does not come at the usual four.
            paper: Where it comes from, unless the packaged catalog has the model.

        Raises:
            ValueError: The name, or one of its models' names, is taken.
        """
        patterns = {f"{name}_{{size}}": {}} if models is None else models
        for pattern in patterns:
            if "{size}" not in pattern:
                raise ValueError(f"model name pattern {pattern!r} of {name!r} lacks '{{size}}'")

        def decorate(cls: ModuleType) -> ModuleType:
            if name in self._entries:
                owner = self._entries[name].cls
                raise ValueError(
                    f"{self.axis} {name!r} is already registered by "
                    f"{owner.__module__}.{owner.__qualname__}; choose another name"
                )
            entry = Entry(name, cls, dict(patterns), dict(vit or {}), sizes, paper)
            for listener in self._listeners:
                listener(self, entry)
            self._entries[name] = entry
            return cls

        return decorate

    def subscribe(self, listener: Callable[["Registry", Entry], None]) -> None:
        """Call `listener(registry, entry)` for every present and every future entry."""
        for entry in self._entries.values():
            listener(self, entry)
        self._listeners.append(listener)

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._entries)

    def resolve(self, spec: Spec) -> Mechanism:
        """The mechanism that a name, a class or a ``functools.partial`` of a class stands for.

        Raises:
            ValueError: Unknown name; the nearest ones are listed.
            TypeError: Neither of the three.
        """
        if isinstance(spec, Mechanism):
            return spec
        if isinstance(spec, str):
            if spec not in self._entries:
                near = difflib.get_close_matches(spec, self._entries, n=3)
                hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
                raise ValueError(
                    f"unknown {self.axis} {spec!r}; {hint}known: {', '.join(self.names())}"
                )
            return Mechanism(spec, self._entries[spec].cls)
        if isinstance(spec, functools.partial) and not spec.args:
            return self.resolve(spec.func).bind(**spec.keywords)  # type: ignore[arg-type]
        if isinstance(spec, type) and issubclass(spec, nn.Module):
            for entry in self._entries.values():
                if entry.cls is spec:
                    return Mechanism(entry.name, spec)
            return Mechanism(spec.__name__, spec)
        raise TypeError(
            f"{self.axis} must be a registered name, an nn.Module class or a functools.partial of "
            f"one with keyword arguments, got {spec!r}"
        )

    def own_parameters(self, spec: Spec) -> list[str]:
        """Names of the constructor parameters that are the mechanism's own."""
        return [
            name
            for name, p in self.resolve(spec).parameters.items()
            if name not in self.interface and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
        ]

    def create(self, spec: Spec, /, **arguments: Any) -> nn.Module:
        """Build a mechanism from interface arguments and its own.

        An interface argument that the class does not take is dropped when it is a hint or has the
        interface's default, so that plain classes such as timm's fit in; any other raises.

        Raises:
            TypeError: An argument the class does not take; the accepted ones are listed.
            ValueError: Unknown name, or what the mechanism itself refuses.
        """
        mechanism = self.resolve(spec)
        arguments = {**arguments, **mechanism.bound}
        if not mechanism.takes_any:
            for name in [n for n in arguments if n not in mechanism.parameters]:
                value = arguments.pop(name)
                droppable = name in self.interface and value == self.interface[name]
                if not droppable and name not in self.hints:
                    accepted = ", ".join(mechanism.parameters)
                    raise TypeError(
                        f"{self.axis} {mechanism.name!r} does not take {name}={value!r}; "
                        f"accepted: {accepted}"
                    )
        return mechanism.cls(**arguments)
