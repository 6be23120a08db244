"""Class attention against timm's layer, and what it leaves alone."""

import functools

import pytest
import timm
import torch
from timm.models.cait import LayerScaleBlockClassAttn

from efficient_vits.reduction import create_reduction


def module(prefix=1, **arguments):
    return create_reduction(
        "class_attention",
        16,
        3,
        2,
        num_prefix_tokens=prefix,
        num_heads=4,
        **{"class_init_values": 0.7, **arguments},
    ).double()


def timms(layer):
    """timm's layer with the weights of ours."""
    norm = functools.partial(torch.nn.LayerNorm, eps=1e-6)
    twin = LayerScaleBlockClassAttn(16, 4, qkv_bias=True, norm_layer=norm).double()
    for name in ("norm1", "norm2", "mlp"):
        getattr(twin, name).load_state_dict(getattr(layer, name).state_dict())
    twin.attn.q.load_state_dict(layer.attn.q.state_dict())
    twin.attn.proj.load_state_dict(layer.attn.proj.state_dict())
    for part, half in (("k", 0), ("v", 1)):
        own = getattr(twin.attn, part)
        own.weight.data = layer.attn.kv.weight.data.chunk(2)[half]
        own.bias.data = layer.attn.kv.bias.data.chunk(2)[half]
    twin.gamma_1.data, twin.gamma_2.data = layer.ls1.gamma.data, layer.ls2.gamma.data
    return twin


def test_equals_timms_layers_for_a_class_token():
    ours = module()
    x = torch.randn(2, 8, 16, dtype=torch.float64, requires_grad=True)
    y, _, _ = ours(x, None, None, {})
    token = x[:, :1]
    for layer in ours.layers:
        token = timms(layer)(x[:, 1:], token)
    torch.testing.assert_close(y[:, :1], token)
    (fast,) = torch.autograd.grad(y[:, 0].square().sum(), x)
    (slow,) = torch.autograd.grad(token.square().sum(), x)
    torch.testing.assert_close(fast, slow)


@pytest.mark.parametrize("prefix", [1, 2, 5])
def test_updates_the_prefix_tokens_alone(prefix):
    ours = module(prefix)
    x = torch.randn(2, prefix + 9, 16, dtype=torch.float64)
    y, _, _ = ours(x, None, None, {})
    assert torch.equal(y[:, prefix:], x[:, prefix:])
    assert ((y - x)[:, :prefix].abs().amax(dim=-1) > 1e-3).all()
    # They read from the patches.
    other = x.clone()
    other[:, -1] = torch.randn(16)
    assert (ours(other, None, None, {})[0] - y)[:, :prefix].abs().max() > 1e-4


def test_stands_after_the_last_block_only():
    model = timm.create_model("class_attention_ti16", img_size=64, depth=3, layers=1)
    assert [list(block.after) for block in model.blocks] == [[], [], ["class_attention"]]
    assert model.token_counts == [17] * 3
    assert model.blocks[2].after["class_attention"].layers[0].attn.num_heads == 3


def test_reads_what_a_reduction_before_it_left():
    model = timm.create_model(
        "vit_ti16", img_size=64, depth=3, reduction=["tome", "class_attention"], r=4
    ).eval()
    assert model.token_counts == [13, 9, 5]
    assert model(torch.randn(1, 3, 64, 64)).isfinite().all()


def test_needs_a_layer_and_a_prefix_token():
    with pytest.raises(ValueError, match="layers >= 1"):
        module(layers=0)
    with pytest.raises(ValueError, match=r"class_attention works on the class token.*no prefix"):
        module(prefix=0)


def test_pooling_that_does_not_read_the_class_token_is_refused():
    small = {"img_size": 64, "depth": 2, "global_pool": "avg"}
    with pytest.raises(ValueError, match=r"class_attention works.*'avg' does not read"):
        timm.create_model("class_attention_ti16", **small)
    assert timm.create_model("class_attention_ti16", pool_include_prefix=True, **small)
