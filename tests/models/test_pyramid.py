"""What pyramids share, whatever the family: timm's protocol, stage by stage."""

import json
from pathlib import Path

import pytest
import timm
import torch
from timm.models import group_parameters
from timm.optim import param_groups_layer_decay
from torch import nn

import efficient_vits  # noqa: F401 (registers the models)
from efficient_vits.models._pyramid import Pyramid

SMALL = Path(__file__).parent / "small"
FILES = {
    family: json.loads((SMALL / f"{family}.json").read_text())
    for family in ("cvt", "efficientmod", "rest", "wavevit")
}
FAMILIES = list(FILES)


def build(family, **arguments):
    torch.manual_seed(0)
    file = FILES[family]
    model = timm.create_model(file["model"], **{"num_classes": 7, **file["arguments"], **arguments})
    return model.eval()


def images(batch=2, height=64, width=96, **factory):
    return torch.randn(batch, 3, height, width, **factory)


def test_every_family_is_here():
    """No pyramid is left out of what follows."""
    classes = {type(build(family, device="meta")) for family in FAMILIES}
    assert classes == set(Pyramid.__subclasses__())


def gradients(model, x, target):
    """Of all parameters, and of the images."""
    x = x.clone().requires_grad_()
    loss = (model(x) * target).sum()
    return torch.autograd.grad(loss, [*model.parameters(), x])


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_one_image_are_those_it_has_in_a_batch(family, training):
    """A batch of one is where torch mistakes one layout for another.

    Beside itself, an image has the batch statistics that it has alone.
    """
    model = build(family).double().train(training)
    x, target = images(1, dtype=torch.float64), torch.randn(1, 7, dtype=torch.float64)
    alone = gradients(model, x, target)
    twice = gradients(model, x.repeat(2, 1, 1, 1), target.repeat(2, 1))
    names = [name for name, _ in model.named_parameters()]
    for name, one, two in zip(names, alone, twice, strict=False):
        # Some gradients are zero but for rounding: those of a bias in front of a norm.
        torch.testing.assert_close(2 * one, two, rtol=1e-6, atol=1e-9, msg=name)
    torch.testing.assert_close(alone[-1], twice[-1][:1], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_maps_come_in_every_format_and_by_name(family):
    model, x = build(family), images()
    final, maps = model.forward_intermediates(x)
    for fmt, back in {
        "NHWC": lambda y, like: y.permute(0, 3, 1, 2),
        "NLC": lambda y, like: y.transpose(1, 2).reshape(like.shape),
    }.items():
        other = model.forward_intermediates(x, output_fmt=fmt, intermediates_only=True)
        assert all(torch.equal(back(y, m), m) for y, m in zip(other, maps, strict=True))
    named = model.forward_intermediates(x, [1, -1], output_dict=True)
    assert torch.equal(named["image_features"], final)
    assert torch.equal(named["image_intermediates"][0], maps[1])
    assert torch.equal(named["image_intermediates"][1], maps[-1])
    alone = model.forward_intermediates(x, 1, intermediates_only=True, output_dict=True)
    assert alone.keys() == {"image_intermediates"}
    with pytest.raises(ValueError, match="'NCL'"):
        model.forward_intermediates(x, output_fmt="NCL")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_norm_is_for_the_last_map(family):
    model, x = build(family), images()
    maps = model.forward_intermediates(x, intermediates_only=True)
    result = model.forward_intermediates(x, norm=True, output_dict=True)
    normed, features = result["image_intermediates"], result["image_features"]
    assert all(torch.equal(a, b) for a, b in zip(maps[:-1], normed[:-1], strict=True))
    if features.ndim == 3:  # tokens, the class token first
        features = features[:, 1:].transpose(1, 2).reshape(maps[-1].shape)
    torch.testing.assert_close(normed[-1], features)
    # Wave-ViT's last norm comes after class attention, in the head.
    assert torch.equal(normed[-1], maps[-1]) == isinstance(model.norm, nn.Identity)
    short = model.forward_intermediates(x, [0, 1], stop_early=True, norm=True, output_dict=True)
    assert torch.equal(short["image_features"], maps[1])
    assert len(short["image_intermediates"]) == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_without_pooling_every_token_is_classified(family):
    model, x = build(family, num_classes=0, global_pool=""), images()
    features = model(x)
    assert torch.equal(features, model.forward_features(x))
    model.reset_classifier(5)
    logits = model(x)
    if features.ndim == 3:
        torch.testing.assert_close(logits, model.head(features))
    else:
        assert logits.shape == (2, 5, *features.shape[2:])
        torch.testing.assert_close(logits[:, :, 1, 2], model.head(features[:, :, 1, 2]))


@pytest.mark.parametrize("family", FAMILIES)
def test_another_pooling_is_refused_and_changes_nothing(family):
    with pytest.raises(ValueError, match="'max'"):
        build(family, global_pool="max")
    model, x = build(family), images()
    before = model(x)
    with pytest.raises(ValueError, match="'max'"):
        model.reset_classifier(5, "max")
    assert torch.equal(model(x), before)
    assert model.num_classes == 7


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_left_of_a_pruned_model_works(family):
    model, x = build(family), images()
    maps = model.forward_intermediates(x, intermediates_only=True)
    assert model.prune_intermediate_layers([0, 1]) == [0, 1]
    assert len(model.stages) == 2
    assert model.num_features == model.head_hidden_size == maps[1].shape[1]
    for kept, m in zip(model.forward_intermediates(x, intermediates_only=True), maps, strict=False):
        assert torch.equal(kept, m)
    pooling = model.poolings()[0]
    model.reset_classifier(5, pooling)
    pooled = model.forward_head(model.forward_features(x), pre_logits=True)
    assert pooled.shape == (2, model.num_features)
    if pooling == "avg":
        torch.testing.assert_close(pooled, maps[1].mean((2, 3)))
    assert model(x).shape == (2, 5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_stage_may_lose_norm_and_head_apart(family):
    model, x = build(family), images()
    with torch.no_grad():  # a norm that is not the identity of what is normed already
        for p in model.norm.parameters():
            p.add_(torch.randn(p.shape))
    last, before = len(model.stages) - 1, model(x)
    normless = isinstance(model.norm, nn.Identity)
    model.prune_intermediate_layers([last], prune_head=False)
    assert torch.equal(model(x), before)
    model.prune_intermediate_layers([last], prune_norm=True, prune_head=False)
    assert model(x).shape == (2, 7)
    assert torch.equal(model(x), before) == normless


@pytest.mark.parametrize("family", FAMILIES)
def test_everything_is_drawn_anew_after_the_meta_device(family):
    model, other = build(family, device="meta").to_empty(device="cpu"), build(family)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor.zero_()
    model.init_weights()
    assert model(images()).isfinite().all()
    # Equal but for what is drawn: constants, scales, statistics.
    for (name, ours), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        assert (ours.std(correction=0) == 0) == (theirs.std(correction=0) == 0), name
        if ours.numel() > 500:
            assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.3), name
    assert {n: b.tolist() for n, b in model.named_buffers()} == {
        n: b.tolist() for n, b in other.named_buffers()
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_are_grouped_by_block_or_by_stage(family):
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
def test_layer_decay_goes_from_stage_to_stage(family):
    model = build(family)
    groups = param_groups_layer_decay(model, layer_decay=0.5)
    names = {id(p): n for n, p in model.named_parameters()}
    scales = {names[id(p)]: g["lr_scale"] for g in groups for p in g["params"]}
    order = ["stages.0.downsample", "stages.0.blocks.0", "stages.1.blocks.0", "stages.2.blocks.0"]
    order += ["stages.2.blocks.1", "head"]
    values = [{s for n, s in scales.items() if n.startswith(prefix + ".")} for prefix in order]
    assert all(len(v) == 1 for v in values)
    rising = [v.pop() for v in values]
    assert rising == sorted(set(rising))
    # What begins a stage goes with its first block, what ends it with its last.
    for i, stage in enumerate(model.stages):
        last = len(stage.blocks) - 1
        for part, block in {"downsample": 0, "cls_token": 0, "norm": last}.items():
            if i == 0 and part == "downsample":
                continue
            found = {s for n, s in scales.items() if n.startswith(f"stages.{i}.{part}")}
            same = {s for n, s in scales.items() if n.startswith(f"stages.{i}.blocks.{block}.")}
            assert found <= same


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [(32, 32), (33, 47), (75, 101)])
def test_the_smallest_and_the_oddest_images(family, size):
    model = build(family)
    assert model(images(2, *size)).isfinite().all()
    maps = model.forward_intermediates(images(2, *size), intermediates_only=True)
    first = maps[0].shape[2:]  # a stem may round up or down
    assert all(abs(4 * n - pixels) < 4 for n, pixels in zip(first, size, strict=True))
    for i, m in enumerate(maps):
        assert m.shape[2:] == tuple(-(-n // 2**i) for n in first)
