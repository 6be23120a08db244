"""The benchmark's names for timm's classes, on networks small enough to look at."""

import pytest
import timm
import torch

from efficient_vits._timm_classes import (
    EFFICIENTFORMER,
    EFFICIENTVIT,
    FASTVIT,
    SWIFTFORMER,
    SWIN,
    translated_name,
    translation_of,
)
from efficient_vits.weights import WeightsError, load_weights


@pytest.mark.parametrize(
    ("rules", "theirs", "ours"),
    [
        (SWIN, "layers.0.downsample.norm.weight", "layers.1.downsample.norm.weight"),
        (SWIN, "layers.0.blocks.1.norm1.weight", "layers.0.blocks.1.norm1.weight"),
        (SWIN, "head.bias", "head.fc.bias"),
        (FASTVIT, "network.1.proj.0.lkb_origin.x", "stages.1.downsample.proj.0.large_conv.x"),
        (FASTVIT, "network.2.1.layer_scale", "stages.1.blocks.1.layer_scale.gamma"),
        (SWIFTFORMER, "network.6.5.layer_scale_2", "stages.3.blocks.5.layer_scale_2.gamma"),
        (EFFICIENTFORMER, "network.4.4.token_mixer.q.1.x", "stages.2.blocks.4.token_mixer.q.bn.x"),
        (EFFICIENTFORMER, "network.5.attn.q.proj.0.x", "stages.3.downsample.attn.q.proj.conv.x"),
        (EFFICIENTFORMER, "network.5.attn.proj.1.x", "stages.3.downsample.attn.proj.conv.x"),
        (EFFICIENTVIT, "backbone.input_stem.2.main.x", "stem.res1.main.x"),
    ],
)
def test_names(rules, theirs, ours):
    assert translated_name(theirs, rules) == ours


def test_masks_and_indices_that_the_benchmark_stored_are_left_out():
    model = timm.create_model(
        "swin_ti_w7", img_size=64, window_size=4, depths=(2, 2), num_heads=(1, 2), embed_dim=8
    )
    state = model.state_dict()
    foreign = {
        k.replace("layers.1.down", "layers.0.down").replace("head.fc", "head"): v
        for k, v in state.items()
    }
    foreign["layers.0.blocks.1.attn_mask"] = torch.zeros(16, 16, 16)
    foreign["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16).long()
    loaded = load_weights(model, foreign)
    assert loaded.layout == "benchmark reference"
    foreign["layers.0.blocks.1.nonsense"] = torch.zeros(1)
    with pytest.raises(WeightsError, match="nonsense"):
        load_weights(model, foreign)


def test_queries_keys_and_values_of_class_attention_are_told_apart():
    model = timm.create_model("xcit_small_12_p16_224", embed_dim=16, depth=1, num_heads=2)
    state = model.state_dict()
    foreign = {k.replace("pos_embed.", "pos_embeder."): v for k, v in state.items()}
    for block in ("cls_attn_blocks.0.attn.", "cls_attn_blocks.1.attn."):
        for leaf in ("weight", "bias"):
            foreign[f"{block}qkv.{leaf}"] = torch.cat(
                [foreign.pop(f"{block}{p}.{leaf}") for p in "qkv"]
            )
    other = timm.create_model("xcit_s12_p16", embed_dim=16, depth=1, num_heads=2)
    assert load_weights(other, foreign).layout == "benchmark reference"
    assert all(torch.equal(other.state_dict()[name], value) for name, value in state.items())


def test_blocks_that_are_counted_throughout_find_their_stage():
    model = timm.create_model("nextvit_small", device="meta")
    translate = translation_of(model)
    names = translate(model, {f"features.{i}.norm.bias": torch.zeros(1) for i in (0, 3, 7, 19, 20)})
    assert list(names) == [
        "stages.0.blocks.0.norm.bias",
        "stages.1.blocks.0.norm.bias",
        "stages.2.blocks.0.norm.bias",
        "stages.3.blocks.2.norm.bias",
        "features.20.norm.bias",
    ]


def test_a_class_of_which_nothing_is_known_has_no_translation():
    assert translation_of(torch.nn.Linear(1, 1)) is None
