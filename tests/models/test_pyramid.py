"""What pyramids share: timm's protocol, stage by stage."""

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay

SMALL = {
    "cvt_13": {"depths": (1, 2, 2), "embed_dims": (8, 16, 24), "num_heads": (1, 2, 3)},
    "rest_s": {
        "depths": (1, 1, 2, 1),
        "embed_dims": (8, 16, 16, 24),
        "num_heads": (1, 2, 4, 8),
    },
}
NAMES = sorted(SMALL)


def build(name, **arguments):
    return timm.create_model(name, **{"num_classes": 7, **SMALL[name], **arguments}).eval()


def images(batch=2, height=64, width=96, **factory):
    return torch.randn(batch, 3, height, width, **factory)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_one_image_are_those_it_has_in_a_batch(name):
    """A batch of one is where torch mistakes one layout for another."""
    model, x = build(name).double(), images(dtype=torch.float64).requires_grad_()
    target = torch.randn(2, 7, dtype=torch.float64)
    (model(x) * target).sum().backward()
    for i in range(2):
        alone = x.detach()[i : i + 1].requires_grad_()
        (model(alone) * target[i : i + 1]).sum().backward()
        torch.testing.assert_close(alone.grad, x.grad[i : i + 1], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_maps_come_in_every_format(name):
    model, x = build(name), images()
    maps = model.forward_intermediates(x, intermediates_only=True)
    for fmt, back in {
        "NHWC": lambda y, like: y.permute(0, 3, 1, 2),
        "NLC": lambda y, like: y.transpose(1, 2).reshape(like.shape),
    }.items():
        other = model.forward_intermediates(x, output_fmt=fmt, intermediates_only=True)
        assert all(torch.equal(back(y, m), m) for y, m in zip(other, maps, strict=True))
    with pytest.raises(ValueError, match="'NCL'"):
        model.forward_intermediates(x, output_fmt="NCL")


@pytest.mark.parametrize("name", NAMES)
def test_the_norm_is_for_the_last_map(name):
    model, x = build(name), images()
    maps = model.forward_intermediates(x, intermediates_only=True)
    result = model.forward_intermediates(x, norm=True, output_dict=True)
    normed, features = result["image_intermediates"], result["image_features"]
    assert all(torch.equal(a, b) for a, b in zip(maps[:-1], normed[:-1], strict=True))
    if features.ndim == 3:  # tokens, the class token first
        features = features[:, 1:].transpose(1, 2).reshape(maps[-1].shape)
    torch.testing.assert_close(normed[-1], features)
    assert not torch.allclose(normed[-1], maps[-1])
    short = model.forward_intermediates(x, [0, 1], stop_early=True, norm=True, output_dict=True)
    assert torch.equal(short["image_features"], maps[1])
    assert len(short["image_intermediates"]) == 2


@pytest.mark.parametrize("name", NAMES)
def test_what_is_left_of_a_pruned_model_works(name):
    model, x = build(name), images()
    maps = model.forward_intermediates(x, intermediates_only=True)
    assert model.prune_intermediate_layers([0, 1]) == [0, 1]
    assert len(model.stages) == 2
    assert model.num_features == model.head_hidden_size == maps[1].shape[1]
    for kept, m in zip(model.forward_intermediates(x, intermediates_only=True), maps, strict=False):
        assert torch.equal(kept, m)
    model.reset_classifier(5, "avg")
    torch.testing.assert_close(
        model.forward_head(model.forward_features(x), True), maps[1].mean((2, 3))
    )
    assert model(x).shape == (2, 5)


@pytest.mark.parametrize("name", NAMES)
def test_the_last_stage_may_lose_norm_and_head_apart(name):
    model, x = build(name), images()
    last, before = len(model.stages) - 1, model(x)
    model.prune_intermediate_layers([last], prune_head=False)
    assert torch.equal(model(x), before)
    model.prune_intermediate_layers([last], prune_norm=True, prune_head=False)
    assert model(x).shape == (2, 7)
    assert not torch.allclose(model(x), before)


@pytest.mark.parametrize("name", NAMES)
def test_weights_drawn_anew_forget_everything(name):
    model = build(name)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.fill_(3)
    model.init_weights()
    state = model.state_dict()
    assert [n for n, value in state.items() if value.numel() > 1 and (value == 3).all()] == []
    for key, value in state.items():
        if key.endswith("running_var"):
            assert (value == 1).all()
        if key.endswith("num_batches_tracked"):
            assert value == 0


@pytest.mark.parametrize("name", NAMES)
def test_layer_decay_goes_from_stage_to_stage(name):
    model = build(name)
    groups = param_groups_layer_decay(model, layer_decay=0.5)
    names = {id(p): n for n, p in model.named_parameters()}
    scales = {names[id(p)]: g["lr_scale"] for g in groups for p in g["params"]}
    order = ["stages.0.downsample", "stages.0.blocks.0", "stages.1.blocks.0", "stages.2.blocks.0"]
    order += ["stages.2.blocks.1", "head"]
    values = [{s for n, s in scales.items() if n.startswith(prefix + ".")} for prefix in order]
    assert all(len(v) == 1 for v in values)
    rising = [v.pop() for v in values]
    assert rising == sorted(set(rising))
    assert (
        scales["stages.2.downsample.proj." + ("conv.weight" if name == "rest_s" else "weight")]
        == (rising[3])
    )
