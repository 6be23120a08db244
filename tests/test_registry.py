"""The registry, and that a mechanism is one file away from being a family of models."""

import functools
import json
import subprocess
import sys
import textwrap
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


# What a user writes: one file per mechanism. They are registered for good, hence in a process of
# their own.
FILES = {
    "attention": '''
        """Average attention: every token gets the mean of all."""

        from torch import nn

        from efficient_vits.attention import register_attention
        from efficient_vits.catalog import Paper

        PAPER = Paper("Means All the Way", "Mean", "Workshop 2031", 2031, "3101.00001")


        @register_attention("average", paper=PAPER)
        class AverageAttention(nn.Module):
            def __init__(self, dim, num_heads=8, *, gain=1.0, device=None, dtype=None):
                super().__init__()
                self.gain = gain
                self.proj = nn.Linear(dim, dim, device=device, dtype=dtype)

            def forward(self, x, attn_mask=None, is_causal=False):
                return self.proj(x + self.gain * x.mean(dim=1, keepdim=True))
    ''',
    "reduction": '''
        """Halving: after the given block only every second patch token stays."""

        from torch import nn

        from efficient_vits.catalog import Paper
        from efficient_vits.reduction import ReductionTraits, register_reduction

        PAPER = Paper("Half Is Enough", "Half", "Workshop 2032", 2032, "3201.00001")


        @register_reduction("halving", models={"halving_{size}_at5": {"at": 5}}, paper=PAPER)
        class Halving(nn.Module):
            traits = ReductionTraits(place="after")

            def __init__(self, dim, depth, block, *, num_prefix_tokens=1, at=0):
                super().__init__()
                self.active = block == at
                self.num_prefix_tokens = num_prefix_tokens

            def num_tokens(self, n):
                return self.num_prefix_tokens + (n - self.num_prefix_tokens + 1) // 2

            def forward(self, x, size, source, info):
                P = self.num_prefix_tokens
                return x[:, list(range(P)) + list(range(P, x.shape[1], 2))], size, source
    ''',
    "mlp": '''
        """One linear layer in place of the MLP."""

        from torch import nn

        from efficient_vits.catalog import Paper
        from efficient_vits.mlp import register_mlp

        PAPER = Paper("Less Is Less", "Less", "Workshop 2033", 2033, "3301.00001")


        @register_mlp("flat", paper=PAPER)
        class Flat(nn.Linear):
            def __init__(self, in_features, hidden_features=None, *, act_layer=None, bias=True,
                         device=None, dtype=None):
                super().__init__(in_features, in_features, bias, device=device, dtype=dtype)
    ''',
    "clashing": '''
        """Mechanisms whose models' names are taken."""

        from torch import nn

        from efficient_vits.attention import register_attention
        from efficient_vits.mlp import register_mlp
        from efficient_vits.reduction import register_reduction

        # timm has a regnetz_b16, but none of ti16 and s16; our own names are all taken.
        TAKEN = {"regnetz_{size}": "regnetz_b16", "hydra_{size}": "hydra_ti16"}


        def attempts():
            for register in (register_attention, register_mlp, register_reduction):
                for pattern, name in TAKEN.items():
                    yield register("clash", models={"free_{size}": {}, pattern: {}}), name


        class Clash(nn.Module):
            def __init__(self, dim):
                super().__init__()


        def errors():
            for decorate, name in attempts():
                try:
                    decorate(Clash)
                except ValueError as error:
                    yield name, str(error)
    ''',
}

# What is done with them; prints one JSON object.
SCRIPT = """
    import json, sys
    import timm, torch
    import efficient_vits
    from efficient_vits.attention import list_attentions
    from efficient_vits.mlp import list_mlps
    from efficient_vits.reduction import list_reductions

    def listed():
        return set(timm.list_models(module="efficient_vits"))

    def everything():
        modules = {m: timm.list_models(module=m) for m in timm.list_modules()}
        return timm.list_models(), modules, timm.list_pretrained(), efficient_vits.list_models()

    before, cards = listed(), set(efficient_vits.list_models())
    import mechanisms.attention, mechanisms.reduction, mechanisms.mlp

    x, out = torch.randn(1, 3, 64, 64), {}
    out["added"] = sorted(listed() - before)
    out["in_list_models"] = sorted(set(efficient_vits.list_models()) - cards)
    for name in out["added"]:
        large = "_b16" in name or "_l16" in name
        device = "meta" if large else "cpu"
        model = timm.create_model(name, num_classes=7, img_size=64, device=device).eval()
        with torch.inference_mode():
            shape = list(model(x.to(device)).shape)
        card = efficient_vits.model_card(name)
        out[name] = [shape, model.embed_dim, len(model.blocks), card.axis, card.paper.title]

    uses = {"attention": ("average", "attn"), "reduction": ("halving", "after.halving"),
            "mlp": ("flat", "mlp")}
    for axis, (name, part) in uses.items():
        model = timm.create_model("vit_ti16", num_classes=7, img_size=64, **{axis: name})
        out[axis] = [type(model.blocks[0].get_submodule(part)).__name__, list(model(x).shape)]
    model = timm.create_model("average_ti16", gain=3.0, mlp="flat", reduction="halving", at=2,
                              device="meta")
    out["all three"] = [model.blocks[0].attn.gain, type(model.blocks[0].mlp).__name__,
                        model.token_counts]
    out["names"] = ["average" in list_attentions(), "halving" in list_reductions(),
                    "flat" in list_mlps()]
    out["by year"] = efficient_vits.list_models(year=(2031, 2033), pattern="*_s16*")
    try:
        timm.create_model("average_ti16", gian=3.0)
    except TypeError as error:
        out["unknown argument"] = str(error)

    import mechanisms.clashing
    state = everything()
    out["clashes"] = list(mechanisms.clashing.errors())
    out["unchanged by clashes"] = state == everything()
    out["clash is registered"] = ["clash" in list_attentions(), "clash" in list_reductions(),
                                  "clash" in list_mlps(), timm.is_model("free_s16"),
                                  "free_s16" in efficient_vits.catalog.cards()]
    print(json.dumps(out))
"""


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    folder = tmp_path_factory.mktemp("user")
    (folder / "mechanisms").mkdir()
    (folder / "mechanisms" / "__init__.py").write_text("")
    for name, text in FILES.items():
        (folder / "mechanisms" / f"{name}.py").write_text(textwrap.dedent(text))
    (folder / "script.py").write_text(textwrap.dedent(SCRIPT))
    run = subprocess.run(
        [sys.executable, "-W", "error", str(folder / "script.py")], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def test_one_file_per_mechanism_adds_every_size(outcome):
    assert outcome["added"] == sorted(
        f"{name}_{size}16{rest}"
        for name, rest in (("average", ""), ("flat", ""), ("halving", "_at5"))
        for size in ("ti", "s", "b", "l")
    )
    assert outcome["in_list_models"] == outcome["added"]


@pytest.mark.parametrize(
    ("size", "dim", "depth"), [("ti", 192, 12), ("s", 384, 12), ("b", 768, 12), ("l", 1024, 24)]
)
@pytest.mark.parametrize(
    ("pattern", "axis", "title"),
    [
        ("average_{}16", "token mixing", "Means All the Way"),
        ("halving_{}16_at5", "token sequence", "Half Is Enough"),
        ("flat_{}16", "MLP block", "Less Is Less"),
    ],
)
def test_its_models_work_and_have_cards(outcome, pattern, axis, title, size, dim, depth):
    assert outcome[pattern.format(size)] == [[1, 7], dim, depth, axis, title]


def test_it_is_an_argument_of_every_vit(outcome):
    assert outcome["names"] == [True, True, True]
    assert outcome["attention"] == ["AverageAttention", [1, 7]]
    assert outcome["reduction"] == ["Halving", [1, 7]]
    assert outcome["mlp"] == ["Flat", [1, 7]]


def test_it_takes_its_own_arguments_and_goes_with_the_others(outcome):
    assert outcome["all three"] == [3.0, "Flat", [197, 197, *[99] * 10]]
    assert "gian=3.0" in outcome["unknown argument"]
    assert "gain" in outcome["unknown argument"]


def test_it_is_found_by_its_paper(outcome):
    assert outcome["by year"] == ["average_s16", "flat_s16", "halving_s16_at5"]


def test_a_taken_model_name_registers_nothing_at_all(outcome):
    names = ["regnetz_b16", "hydra_ti16"] * 3
    assert [name for name, _ in outcome["clashes"]] == names
    for name, message in outcome["clashes"]:
        assert "already has" in message
        assert name in message
    assert outcome["unchanged by clashes"] is True
    assert outcome["clash is registered"] == [False] * 5
