"""What every family of stages on ever coarser grids does beyond the contract of all models."""

import json
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

SMALL = Path(__file__).parent / "small"
FAMILIES = ["wavevit", "efficientmod"]


def build(family, **arguments):
    torch.manual_seed(0)
    file = json.loads((SMALL / f"{family}.json").read_text())
    model = timm.create_model(file["model"], **{"num_classes": 7, **file["arguments"], **arguments})
    return model.eval()


def images(height=64, width=96):
    return torch.randn(2, 3, height, width)


@pytest.mark.parametrize("family", FAMILIES)
def test_maps_come_in_both_forms_and_by_name(family):
    model, x = build(family), images()
    final, maps = model.forward_intermediates(x)
    last = model.forward_intermediates(x, output_fmt="NHWC", intermediates_only=True)
    for first, second in zip(maps, last, strict=True):
        assert torch.equal(first, second.permute(0, 3, 1, 2))
    named = model.forward_intermediates(x, [1, -1], output_dict=True)
    assert torch.equal(named["image_features"], final)
    assert torch.equal(named["image_intermediates"][0], maps[1])
    assert torch.equal(named["image_intermediates"][1], maps[3])
    alone = model.forward_intermediates(x, 1, intermediates_only=True, output_dict=True)
    assert alone.keys() == {"image_intermediates"}
    stopped, _ = model.forward_intermediates(x, [1], stop_early=True)
    assert torch.equal(stopped, maps[1])
    with pytest.raises(ValueError, match="'NLC'"):
        model.forward_intermediates(x, output_fmt="NLC")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_map_is_normed_on_demand(family):
    model, x = build(family), images()
    final = model.forward_features(x)
    plain = model.forward_intermediates(x, intermediates_only=True)
    normed = model.forward_intermediates(x, norm=True, intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(plain[:3], normed[:3], strict=True))
    assert torch.equal(normed[3], final)
    # Wave-ViT's last norm comes after class attention, in the head.
    assert torch.equal(plain[3], final) == isinstance(model.norm, nn.Identity)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_pooling_every_token_is_classified(family):
    model, x = build(family, num_classes=0, global_pool=""), images()
    features = model(x)
    assert torch.equal(features, model.forward_features(x))
    model.reset_classifier(5)
    assert model(x).shape == (2, 5, 2, 3)
    torch.testing.assert_close(model(x)[:, :, 1, 2], model.head(features[:, :, 1, 2]))


@pytest.mark.parametrize("family", FAMILIES)
def test_another_pooling_is_refused_and_changes_nothing(family):
    with pytest.raises(ValueError, match="'max'"):
        build(family, global_pool="max")
    model, x = build(family), images()
    before = model(x)
    with pytest.raises(ValueError, match="'max'"):
        model.reset_classifier(5, "max")
    assert torch.equal(model(x), before)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pruned_model_can_be_given_a_head(family):
    model, x = build(family), images()
    maps = model.forward_intermediates(x, intermediates_only=True)
    pool = model.global_pool
    assert model.prune_intermediate_layers([0, 2]) == [0, 2]
    assert torch.equal(model(x), maps[2])
    model.reset_classifier(4, pool)
    assert model(x).shape == (2, 4)
    assert model.num_features == maps[2].shape[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_are_grouped_by_block_or_by_stage(family):
    from timm.models import group_parameters

    model = build(family)
    fine = group_parameters(model, model.group_matcher())
    coarse = group_parameters(model, model.group_matcher(coarse=True))
    blocks = sum(len(stage.blocks) for stage in model.stages)
    assert len(fine) == 1 + blocks + 1  # the stem and the head
    assert len(coarse) == 1 + len(model.stages) + 1
    assert {name for group in fine.values() for name in group} == set(
        dict(model.named_parameters())
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_everything_is_drawn_anew_after_the_meta_device(family):
    model = build(family, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor.zero_()
    model.init_weights()
    assert model(images()).isfinite().all()
    other = build(family)
    # Equal but for what is drawn: constants, scales, statistics.
    for (name, ours), theirs in zip(
        model.named_parameters(), dict(other.named_parameters()).values(), strict=True
    ):
        if ours.numel() > 500:
            assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.3), name
    assert {n: b.tolist() for n, b in model.named_buffers()} == {
        n: b.tolist() for n, b in other.named_buffers()
    }


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [(32, 32), (33, 47), (75, 101)])
def test_the_smallest_and_the_oddest_images(family, size):
    model = build(family)
    assert model(images(*size)).isfinite().all()
    maps = model.forward_intermediates(images(*size), intermediates_only=True)
    assert maps[3].shape[2:] == (-(-size[0] // 32), -(-size[1] // 32))
