"""timm's networks under our names: which configuration, which weights, and what XCiT computes."""

import pytest
import timm
import torch

import efficient_vits
from efficient_vits.efficiency import count_flops
from efficient_vits.models.on_timm import PublishedXcit
from efficient_vits.weights import WeightsError

TIMMS = {
    "swin_ti_w7": "swin_tiny_patch4_window7_224",
    "swin_s_w7": "swin_small_patch4_window7_224",
    "xcit_s12_p16": "xcit_small_12_p16_224",
    "cait_s24": "cait_s24_224",
    "mixer_s16": "mixer_s16_224",
}


def entries(model):
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


@pytest.mark.parametrize("name", TIMMS)
def test_is_timms_model_of_the_same_configuration(name):
    ours, theirs = (timm.create_model(n, device="meta") for n in (name, TIMMS[name]))
    assert entries(ours) == entries(theirs)


@pytest.mark.parametrize("name", TIMMS)
def test_offers_the_weights_that_timm_has_with_timms_record_of_them(name):
    tags = {full.partition(".")[2] for full in timm.list_pretrained(f"{name}.*")}
    assert tags == {full.partition(".")[2] for full in timm.list_pretrained(f"{TIMMS[name]}.*")}
    for tag in tags:
        ours, theirs = (timm.get_pretrained_cfg(f"{n}.{tag}") for n in (name, TIMMS[name]))
        assert ours.hf_hub_id == f"timm/{TIMMS[name]}.{tag}"
        assert not ours.url
        for key in ("mean", "std", "crop_pct", "interpolation", "num_classes", "license"):
            assert getattr(ours, key) == getattr(theirs, key)
    default = timm.get_pretrained_cfg(name)
    assert default.num_classes == 1000


def test_swin_v2_has_windows_of_seven_and_no_published_weights():
    model = timm.create_model("swinv2_ti_w7", device="meta")
    assert {block.window_size for stage in model.layers for block in stage.blocks} == {(7, 7)}
    assert timm.list_pretrained("swinv2_ti_w7*") == []


def test_xcit_gives_timms_outputs_and_costs_a_query_per_token():
    small = {"img_size": 32, "embed_dim": 32, "depth": 1, "num_heads": 2}
    ours = timm.create_model("xcit_s12_p16", **small).eval()
    theirs = timm.create_model("xcit_small_12_p16_224", **small).eval()
    theirs.load_state_dict(ours.state_dict())
    assert isinstance(ours, PublishedXcit)
    x = torch.randn(2, 3, 64, 48)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(
        ours.double().train()(x.double()), theirs.double().train()(x.double())
    )
    sizes = [count_flops(model.float().eval(), (3, 64, 48)).total for model in (ours, theirs)]
    patches, blocks = 4 * 3, 2
    assert sizes[0] - sizes[1] == blocks * patches * 32 * 32


def test_swiftformers_figures_are_those_of_timms_network():
    """The benchmark ran another one: what its weights name and timm's class lacks is reported."""
    card = efficient_vits.model_card("swiftformer_s")
    model = timm.create_model("swiftformer_s", device="meta")
    assert sum(p.numel() for p in model.parameters()) == card.params
    counted = count_flops(model, (3, card.img_size, card.img_size))
    assert counted.total == pytest.approx(card.flops, rel=0.01)
    assert counted.uncounted == {}
    small = timm.create_model("swiftformer_s", layers=[2], embed_dims=[8], downsamples=[False])
    foreign = {
        "patch_embed.0.weight": torch.zeros(4, 3, 3, 3),
        "network.0.1.attn.Proj.weight": torch.zeros(8, 8),
        "network.0.1.norm1.weight": torch.zeros(8),
    }
    with pytest.raises(WeightsError) as error:
        efficient_vits.load_weights(small, foreign)
    assert error.value.faults["unexpected"] == ["stages.0.blocks.1.norm1.weight"]
