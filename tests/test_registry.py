"""The registry of an axis: names, classes, their arguments."""

import functools
from inspect import Parameter

import pytest
from torch import nn

from efficient_vits._registry import Mechanism, Registry


class Gate(nn.Module):
    def __init__(self, dim, num_heads=8, *, width=3, grid_size=None):
        super().__init__()
        self.arguments = {
            "dim": dim,
            "num_heads": num_heads,
            "width": width,
            "grid_size": grid_size,
        }


class Plain(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.dim = dim


class Anything(nn.Module):
    def __init__(self, dim, *positional, **keywords):
        super().__init__()
        self.keywords = keywords


def new_registry():
    return Registry(
        "mixer",
        interface={
            "dim": Parameter.empty,
            "num_heads": 8,
            "bias": True,
            "grid_size": None,
            "depth": 0,
        },
        hints=frozenset({"grid_size", "depth"}),
    )


@pytest.fixture
def registry():
    registry = new_registry()
    registry.register("plain")(Plain)
    registry.register("gate")(Gate)
    return registry


def test_names_are_sorted_and_a_copy(registry):
    assert registry.names() == ["gate", "plain"]
    registry.names().clear()
    assert registry.names() == ["gate", "plain"]


def test_registering_gives_the_class_back(registry):
    assert registry.register("other")(Anything) is Anything


def test_registries_share_nothing(registry):
    assert new_registry().names() == []


def test_an_unknown_name_is_answered_with_near_and_all_names(registry):
    with pytest.raises(ValueError, match="unknown mixer 'gates'; did you mean 'gate'") as error:
        registry.resolve("gates")
    assert "known: gate, plain" in str(error.value)
    with pytest.raises(ValueError, match="unknown mixer 'zzz'; known: gate, plain"):
        registry.create("zzz", dim=4)


def test_a_name_twice_names_the_earlier_owner(registry):
    with pytest.raises(ValueError, match=f"mixer 'gate' is already .*{__name__}.Gate"):
        registry.register("gate")(Plain)
    assert registry.resolve("gate").cls is Gate


def test_a_pattern_without_a_size_is_refused_before_anything_is_registered(registry):
    with pytest.raises(ValueError, match=r"'big_gate'.*'gate2'.*\{size\}"):
        registry.register("gate2", models={"big_gate": {}})
    assert registry.names() == ["gate", "plain"]


def test_an_entry_has_what_was_registered(registry):
    entries = []
    registry.subscribe(lambda _, entry: entries.append(entry))
    registry.register("wide", models={"wide_{size}": {"width": 9}}, vit={"qkv_bias": False})(Gate)
    plain, wide = entries[0], entries[-1]
    assert (plain.name, plain.cls, plain.models, plain.vit, plain.paper) == (
        "plain",
        Plain,
        {"plain_{size}": {}},
        {},
        None,
    )
    assert (wide.models, wide.vit) == ({"wide_{size}": {"width": 9}}, {"qkv_bias": False})


def test_subscribers_see_past_and_future_entries():
    registry, seen = new_registry(), []
    registry.register("first")(Plain)
    registry.subscribe(lambda where, entry: seen.append((where, entry.name)))
    assert seen == [(registry, "first")]
    registry.register("second")(Gate)
    assert seen == [(registry, "first"), (registry, "second")]


def test_a_listener_that_raises_leaves_nothing_registered(registry):
    def refuse(_, entry):
        if entry.cls is Anything:
            raise RuntimeError("no")

    registry.subscribe(refuse)
    with pytest.raises(RuntimeError, match="no"):
        registry.register("other")(Anything)
    assert registry.names() == ["gate", "plain"]
    registry.register("other")(Plain)
    assert registry.names() == ["gate", "other", "plain"]


@pytest.mark.parametrize(
    ("spec", "name", "bound"),
    [
        ("gate", "gate", {}),
        (Gate, "gate", {}),
        (functools.partial(Gate, width=7), "gate", {"width": 7}),
        (functools.partial(functools.partial(Gate, width=7), width=8), "gate", {"width": 8}),
        (Mechanism("gate", Gate, {"width": 7}), "gate", {"width": 7}),
        (Anything, "Anything", {}),
        (functools.partial(Anything, width=7), "Anything", {"width": 7}),
    ],
)
def test_names_classes_and_partials_stand_for_mechanisms(registry, spec, name, bound):
    mechanism = registry.resolve(spec)
    assert mechanism.name == name
    assert mechanism.bound == bound
    assert isinstance(registry.create(spec, dim=4), mechanism.cls)


@pytest.mark.parametrize(
    "spec",
    [
        functools.partial(Gate, 4),
        functools.partial(max, key=len),
        Gate(4),
        dict,
        None,
        3,
        len,
    ],
    ids=["positional", "function", "module", "class", "None", "int", "callable"],
)
def test_nothing_else_does(registry, spec):
    with pytest.raises(TypeError, match=r"registered name, an nn\.Module class or a functools"):
        registry.create(spec, dim=4)


def test_arguments_arrive(registry):
    gate = registry.create("gate", dim=4, num_heads=2, width=5, grid_size=(2, 3))
    assert gate.arguments == {"dim": 4, "num_heads": 2, "width": 5, "grid_size": (2, 3)}


def test_bound_arguments_win(registry):
    gate = registry.create(functools.partial(Gate, num_heads=1, width=7), dim=4, num_heads=2)
    assert gate.arguments["num_heads"] == 1
    assert gate.arguments["width"] == 7


def test_binding_makes_a_new_mechanism(registry):
    mechanism = registry.resolve("gate")
    bound = mechanism.bind(width=1).bind(width=2, num_heads=3)
    assert bound.bound == {"width": 2, "num_heads": 3}
    assert mechanism.bound == {}


@pytest.mark.parametrize("spec", ["gate", functools.partial(Gate, widht=7)])
def test_an_unknown_argument_is_answered_with_the_accepted_ones(registry, spec):
    arguments = {"widht": 7} if spec == "gate" else {}
    with pytest.raises(
        TypeError,
        match="mixer 'gate' does not take widht=7; accepted: dim, num_heads, width, grid_size",
    ):
        registry.create(spec, dim=4, **arguments)


def test_hints_are_dropped_where_a_class_has_no_use_for_them(registry):
    assert registry.create("plain", dim=4, grid_size=(2, 3), depth=5).dim == 4


def test_defaults_of_the_interface_are_dropped_and_other_values_refused(registry):
    assert registry.create("plain", dim=4, num_heads=8, bias=True).dim == 4
    with pytest.raises(TypeError, match="mixer 'plain' does not take bias=False; accepted: dim"):
        registry.create("plain", dim=4, bias=False)


def test_a_class_that_takes_everything_gets_everything(registry):
    module = registry.create(Anything, dim=4, bias=False, depth=5, own=1)
    assert module.keywords == {"bias": False, "depth": 5, "own": 1}


def test_own_parameters_are_those_outside_the_interface(registry):
    assert registry.own_parameters("gate") == ["width"]
    assert registry.own_parameters(functools.partial(Gate, width=1)) == ["width"]
    assert registry.own_parameters("plain") == registry.own_parameters(Anything) == []
