"""A mechanism is one file away from being a family of models, and an argument of every ViT."""

import json
import subprocess
import sys
import textwrap

import pytest

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
