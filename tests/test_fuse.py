"""Folded models give the outputs of the model; what would change them is left alone."""

import copy

import pytest
import timm
import torch
from folding import Plain, assert_equal, norms, size, stirred
from timm.layers import BatchNormAct2d, Conv2dSame, ConvNormAct, StdConv2d
from timm.utils import freeze
from torch import nn
from torch.nn.utils import parametrizations

import efficient_vits
from efficient_vits import fuse, fused_modules

# Norms left by each: what follows them is no convolution.
MODELS = {
    "resnet26d": 0,  # its stem ends in a sequence of convolutions
    "tf_efficientnet_b0": 0,  # norms with an activation, padding found at run time
    "fastvit_s12": 0,
    "efficientformerv2_s0": 1,
    "swiftformer_xs": 1,
    "efficientvit_b0": 0,
    "efficientvit_m0": 0,
    "repvgg_a0": 0,
    "mobileone_s0": 0,
    "repvit_m0_9": 0,
    "levit_128s": 0,
    "tiny_vit_5m_224": 0,
    "nextvit_small": 1,
    "ghostnetv3_050": 0,
    "slab_ti16": 0,
}
SIZED = {"efficientformerv2_s0", "efficientvit_m0", "levit_128s", "tiny_vit_5m_224", "slab_ti16"}


@pytest.mark.parametrize("name", MODELS)
def test_models(name):
    pixels = 224 if name in SIZED - {"slab_ti16"} else 64
    arguments = {"img_size": 64, "depth": 2, "init_values": 1.0} if name == "slab_ti16" else {}
    model = stirred(timm.create_model(name, num_classes=7, **arguments))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    fused, x = fuse(model), torch.randn(1, 3, pixels, pixels)
    assert_equal(fused, model, x)
    assert len(norms(fused)) == MODELS[name]
    assert size(fused) < size(model)
    names = fused_modules(fused)
    assert len(names) == len(set(names)) >= len(norms(model)) - MODELS[name]
    assert set(names) <= dict(model.named_modules()).keys()
    assert not fused.training
    # The model is as it was, and a second time changes nothing.
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert fused_modules(model) == ()
    again = fuse(fused)
    assert [(n, type(m)) for n, m in again.named_modules()] == [
        (n, type(m)) for n, m in fused.named_modules()
    ]
    assert fused_modules(again) == names
    torch.testing.assert_close(again.state_dict(), fused.state_dict(), rtol=0, atol=0)


def test_a_wrong_bias_would_be_noticed():
    model = stirred(timm.create_model("resnet26d", num_classes=7))
    fused = fuse(model)
    with torch.no_grad():
        fused.layer1[0].conv2.bias += 1e-2
    with pytest.raises(AssertionError, match="not close"):
        assert_equal(fused, model, torch.randn(1, 3, 64, 64))


@pytest.mark.parametrize(
    ("conv", "norm"),
    [
        (nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6)),
        (nn.Conv3d(4, 6, 3, padding=1), nn.BatchNorm3d(6)),
        (nn.Conv2d(4, 6, 3, padding=(2, 0), stride=2), nn.BatchNorm2d(6)),
        (nn.Conv2d(4, 6, 3, padding="same", dilation=2, groups=2), nn.BatchNorm2d(6)),
        (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(6)),
        (nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6, affine=False, eps=0.1)),
        (Conv2dSame(4, 6, 3, stride=2), BatchNormAct2d(6, act_layer=nn.SiLU)),
        (nn.Conv2d(4, 6, 1), BatchNormAct2d(6, drop_layer=nn.Hardtanh)),
        (nn.Conv2d(4, 6, 1), BatchNormAct2d(6, apply_act=False)),
    ],
)
def test_a_norm_goes_into_the_convolution_before_it(conv, norm):
    x = 3 * torch.randn(2, 4, *[9] * (conv.weight.ndim - 2))
    for model in (
        Plain(conv, norm),
        nn.Sequential(conv, norm),
        nn.Sequential(nn.ReLU(), conv, norm),
    ):
        stirred(model)
        fused = fuse(model)
        assert_equal(fused, model, x)
        assert norms(fused) == []
        assert len(fused_modules(fused)) == 1
        torch.testing.assert_close(torch.jit.script(fused)(x), fused(x))


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(6, 8, 3),
        nn.Conv2d(6, 8, 3, groups=2, bias=False),
        nn.Conv2d(6, 6, 3, groups=6, padding="valid"),
        nn.Conv2d(6, 8, 3, padding=1, padding_mode="replicate"),
    ],
)
def test_a_norm_goes_into_a_convolution_after_it_that_pads_no_zeros(conv):
    model = stirred(nn.Sequential(nn.BatchNorm2d(6), nn.Identity(), conv))
    fused = fuse(model)
    assert_equal(fused, model, torch.randn(2, 6, 7, 7))
    assert norms(fused) == []
    # Between two convolutions it goes into the first, whatever the second does with borders.
    model = stirred(nn.Sequential(nn.Conv2d(3, 6, 3), *model[:1], nn.Conv2d(6, 4, 3, padding=1)))
    fused = fuse(model)
    assert_equal(fused, model, torch.randn(2, 3, 7, 7))
    assert norms(fused) == []


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)),
        nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding="same")),
        nn.Sequential(nn.BatchNorm2d(4), Conv2dSame(4, 4, 3)),
        nn.Sequential(BatchNormAct2d(4), nn.Conv2d(4, 4, 1)),
        nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.BatchNorm2d(4)),
        nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)),
        nn.Sequential(StdConv2d(4, 4, 3), nn.BatchNorm2d(4)),
        nn.Sequential(nn.ConvTranspose2d(4, 4, 3), nn.BatchNorm2d(4)),
        nn.Sequential(nn.Conv2d(4, 4, 1), nn.LayerNorm(9)),
        # The norm's channels are the 9 tokens of each image.
        nn.Sequential(nn.Flatten(2), nn.Linear(81, 4), nn.BatchNorm1d(4)),
        nn.Sequential(parametrizations.weight_norm(nn.Conv2d(4, 4, 1)), nn.BatchNorm2d(4)),
    ],
)
def test_what_does_not_fold_stays(model):
    stirred(model)
    fused = fuse(model)
    assert fused_modules(fused) == ()
    assert [type(m) for m in fused.modules()] == [type(m) for m in model.modules()]
    assert_equal(fused, model, torch.randn(2, 4, 9, 9))


def test_frozen_and_synchronised_norms():
    for change in (freeze, nn.SyncBatchNorm.convert_sync_batchnorm):
        model = stirred(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU()))
        changed = copy.deepcopy(model)
        changed = change(changed) or changed
        fused = fuse(changed.eval())
        assert fused_modules(fused) == ("1",)
        assert_equal(fused, model, torch.randn(2, 4, 5, 5))


def test_a_traced_graph():
    model = stirred(timm.create_model("resnet18", num_classes=7))
    traced = torch.fx.symbolic_trace(model)
    fused = fuse(traced)
    assert norms(fused) == []
    assert_equal(fused, model, torch.randn(1, 3, 64, 64))


@torch.no_grad()
def test_features_are_those_of_the_model():
    model = stirred(timm.create_model("resnet26d", features_only=True))
    fused, x = fuse(model), torch.randn(1, 3, 64, 64)
    assert norms(fused) == []
    for got, want in zip(fused(x), model(x), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-4 * float(want.abs().max()))


def test_training_is_ended_in_a_copy_only():
    model = stirred(timm.create_model("resnet18", num_classes=7)).train()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="eval"):
        fuse(model, inplace=True)
    fused, x = fuse(model), torch.randn(1, 3, 64, 64)
    assert model.training
    assert not any(m.training for m in fused.modules())
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert_equal(fused, model.eval(), x)
    fused.train()  # nothing in it differs in training
    assert_equal(fused, model, x)


def test_in_place_changes_the_model_itself():
    model = stirred(timm.create_model("fastvit_t8", num_classes=7))
    reference, x = copy.deepcopy(model), torch.randn(1, 3, 64, 64)
    assert fuse(model, inplace=True) is model
    assert norms(model) == []
    assert_equal(model, reference, x)
    assert len(fused_modules(model)) >= len(norms(reference))


def test_hooks_see_what_they_saw():
    model = stirred(
        nn.Sequential(ConvNormAct(3, 4, 3), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
    )
    seen = []
    model[0].bn.register_forward_hook(lambda module, inputs, output: seen.append(output.clone()))
    model[1].register_forward_hook(lambda module, inputs, output: seen.append(output.clone()))
    model[2].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    model[3].register_forward_hook(lambda module, inputs, output: seen.append(output.clone()))
    x = torch.randn(2, 3, 5, 5)
    model(x)
    before = list(seen)
    fused = fuse(model)
    seen.clear()
    fused(x)
    torch.testing.assert_close(seen, before)
    assert fused_modules(fused) == ()
    # A hook around a pair does not keep it from folding.
    model = stirred(nn.Sequential(ConvNormAct(3, 4, 3)))
    model[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
    assert fused_modules(fuse(model)) == ("0.bn",)


def test_a_hook_inside_keeps_branches_apart():
    model = stirred(timm.create_model("repvgg_a0", num_classes=7))
    calls = []
    block = model.stages[0][0]
    block.conv_1x1.register_forward_hook(lambda *_: calls.append(1))
    fused, x = fuse(model), torch.randn(1, 3, 64, 64)
    assert_equal(fused, model, x)
    assert len(calls) == 2
    assert fused.stages[0][0].conv_1x1 is not None
    assert norms(fused.stages[0][1:]) == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", ["levit_128s", "repvit_m0_9", "fastvit_t8", "resnet18"])
def test_device_and_dtype_are_kept(name, dtype):
    model = timm.create_model(name, num_classes=7, device="meta").to(dtype).eval()
    fused = fuse(model)
    assert norms(fused) == []
    assert {(p.device.type, p.dtype) for p in fused.parameters()} == {("meta", dtype)}


def test_double_precision_is_not_lost():
    model = stirred(timm.create_model("resnet18", num_classes=7)).double()
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(fuse(model)(x), model(x), rtol=1e-10, atol=1e-10)


def test_a_model_folded_by_timm_is_left_as_it_is():
    model = stirred(timm.create_model("fastvit_t8", num_classes=7))
    theirs = timm.utils.reparameterize_model(model).eval()
    assert_equal(fuse(theirs), model, torch.randn(1, 3, 64, 64))


def test_one_pair_is_a_model_too():
    pair = stirred(timm.create_model("levit_128s").stem.conv1)
    fused = fuse(pair)
    assert type(fused) is nn.Conv2d
    assert_equal(fused, pair, torch.randn(1, 3, 8, 8))
    assert fused_modules(fused) == ("linear", "bn")


def test_what_a_pass_has_left_behind_is_no_obstacle():
    """A term of the loss, and a cache, both with a history that torch does not copy."""
    routed = timm.create_model("switch8_ti16", img_size=32, depth=2).train()
    routed(torch.randn(2, 3, 32, 32))
    assert efficient_vits.auxiliary_loss(routed).grad_fn is not None
    x = torch.randn(2, 3, 32, 32)
    assert_equal(fuse(routed), routed.eval(), x)
    cached = stirred(timm.create_model("efficientformerv2_s0", num_classes=7))
    x = torch.randn(1, 3, 224, 224)
    cached(x)
    assert_equal(fuse(cached), cached, x)
    copy.deepcopy(fuse(cached))  # tracing has left nothing in the caches


def test_a_model_without_norms_to_fold_is_copied():
    model = timm.create_model("vit_ti16", img_size=32, depth=2).eval()
    fused, x = fuse(model), torch.randn(1, 3, 32, 32)
    assert fused is not model
    assert torch.equal(fused(x), model(x))
    assert fused_modules(fused) == ()
