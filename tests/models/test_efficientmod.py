"""EfficientMod: its sizes, folding, and the widths that weights of others have."""

import copy
import json
from pathlib import Path

import pytest
import timm
import torch
from timm.layers import LayerScale
from torch import nn

import efficient_vits
from efficient_vits.models.efficientmod import ModulationBlock

SMALL = json.loads((Path(__file__).parent / "small" / "efficientmod.json").read_text())["arguments"]


def build(**arguments):
    torch.manual_seed(0)
    return timm.create_model("efficientmod_s", **{"num_classes": 7, **SMALL, **arguments}).eval()


@pytest.mark.parametrize(
    ("size", "parameters"), [("xxs", 4_736_264), ("xs", 6_627_544), ("s", 12_897_184)]
)
def test_has_as_many_parameters_as_the_authors_code(size, parameters):
    model = timm.create_model(f"efficientmod_{size}", device="meta")
    assert sum(p.numel() for p in model.parameters()) == parameters
    for block in model.stages[2].blocks[-1:]:
        assert block.attn.head_dim == 32


def test_other_widths_bring_their_own_attention():
    narrow = timm.create_model("efficientmod_s", embed_dim=[32, 64, 128, 256], device="meta")
    assert narrow.stages[2].blocks[-1].attn.qkv.out_features == 3 * 128
    chosen = timm.create_model(
        "efficientmod_s",
        embed_dim=[32, 64, 128, 256],
        attn_dims=[256, 256, 256, 256],
        device="meta",
    )
    assert chosen.stages[2].blocks[-1].attn.qkv.out_features == 3 * 256
    with pytest.raises(ValueError, match="num_heads=8"):
        build(attn_dims=[20, 20, 20, 20])


def test_wide_and_narrow_modulation_take_turns():
    for stage in build().stages:
        mixers = [b.mixer.expansion for b in stage.blocks if isinstance(b, ModulationBlock)]
        assert mixers == ([1, 3] * 2)[: len(mixers)]


def test_cards_of_other_sizes_have_the_paper_and_no_figures():
    small, tiny = (efficient_vits.model_card(f"efficientmod_{s}") for s in ("s", "xxs"))
    assert tiny.paper == small.paper
    assert (tiny.params, tiny.flops, tiny.note, tiny.reference_args) == (None, None, "", {})


def fold(model):
    folded = copy.deepcopy(model)
    for module in list(folded.modules()):
        if hasattr(module, "fuse"):
            module.fuse()
    return folded


def test_layer_scale_folds_into_the_projection():
    model, x = build().double(), torch.randn(2, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, LayerScale):
                nn.init.normal_(module.gamma)
    folded = fold(model)
    assert not any(isinstance(m, LayerScale) for m in folded.modules())
    torch.testing.assert_close(folded(x), model(x))
    torch.testing.assert_close(fold(folded)(x), model(x))
    with torch.no_grad():
        next(m for m in model.modules() if isinstance(m, LayerScale)).gamma.neg_()
    assert not torch.allclose(folded(x), model(x))


def test_layer_scale_is_optional():
    model = build(init_values=0.0)
    assert not any(isinstance(m, LayerScale) for m in model.modules())
    starts = {m.gamma[0].item() for m in build(init_values=0.5).modules() if hasattr(m, "gamma")}
    assert starts == {0.5}


def test_the_authors_names_become_ours_whatever_their_block_is():
    """A modulation block and one of attention both have an ``mlp.fc1`` there."""
    names = {
        "layers.0.blocks.0.mlp.fc1.weight": "stages.0.blocks.0.mixer.v.weight",
        "layers.0.blocks.0.mlp.context_layer.f.bias": "stages.0.blocks.0.mixer.f.bias",
        "layers.0.blocks.0.gamma_1": "stages.0.blocks.0.ls.gamma",
        "layers.0.blocks.10.mlp.fc1.weight": "stages.0.blocks.10.mlp.fc1.weight",
        "layers.0.downsample.proj.weight": "stages.1.downsample.proj.weight",
        "patch_embed.proj.weight": "stages.0.downsample.proj.weight",
        "head.bias": "head.bias",
    }
    state = {name: torch.randn(2) for name in names}
    ours = type(build()).from_reference(state)
    assert ours.keys() == set(names.values())
    assert all(ours[new] is state[old] for old, new in names.items())
