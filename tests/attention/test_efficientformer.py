"""EfficientFormerV2's attention against its formula, and against timm's module."""

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.efficientformer_v2 import Attention2d
from torch import nn

import efficient_vits
from efficient_vits.attention import create_attention


def build(grid, prefix=0, dim=6, heads=2, **own):
    mixer = create_attention(
        "efficientformer",
        dim,
        num_heads=heads,
        grid_size=grid,
        num_prefix_tokens=prefix,
        key_dim=4,
        attn_ratio=1.5,
        **own,
    )
    for module in mixer.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    nn.init.normal_(mixer.position_bias)
    return mixer.double().eval()


def normed(bn, x):
    return (x - bn.running_mean) / (bn.running_var + bn.eps).sqrt() * bn.weight + bn.bias


def naive_efficientformer(mixer, x):
    P, (H, W), heads = mixer.num_prefix_tokens, mixer.grid_size, mixer.num_heads
    q, k, v = (
        normed(layer.bn, x[:, P:] @ layer.linear.weight.T) for layer in (mixer.q, mixer.k, mixer.v)
    )
    places = [(y, x) for y in range(H) for x in range(W)]
    bias = torch.stack(
        [
            torch.stack([mixer.position_bias[:, abs(a - c) * W + abs(b - d)] for c, d in places])
            for a, b in places
        ]
    )  # (N, N, heads)
    logits = [
        a @ b.transpose(1, 2) / 2 + bias[..., h]
        for h, (a, b) in enumerate(zip(q.chunk(heads, -1), k.chunk(heads, -1), strict=True))
    ]

    def talk(conv, maps):
        weight = conv.weight[:, :, 0, 0]
        return [
            sum(weight[i, j] * maps[j] for j in range(heads)) + conv.bias[i] for i in range(heads)
        ]

    weights = talk(mixer.talking_head2, [m.softmax(-1) for m in talk(mixer.talking_head1, logits)])
    y = torch.cat([a @ b for a, b in zip(weights, v.chunk(heads, -1), strict=True)], dim=-1)
    image = F.pad(v.transpose(1, 2).reshape(len(x), -1, H, W), [1] * 4)
    local = sum(
        image[:, :, i : i + H, j : j + W] * mixer.v_local.weight[:, 0, i, j].view(-1, 1, 1)
        for i in range(3)
        for j in range(3)
    )
    y = y + normed(mixer.v_local_norm, local.flatten(2).transpose(1, 2))
    y = normed(mixer.proj.bn, F.gelu(y) @ mixer.proj.linear.weight.T)
    return torch.cat([x[:, :P], y], dim=1)


@settings(deadline=None, max_examples=10)
@given(grid=st.tuples(st.integers(1, 4), st.integers(1, 4)), prefix=st.integers(0, 2))
def test_outputs_and_gradients_are_those_of_the_formula(grid, prefix):
    mixer = build(grid, prefix)
    x = torch.randn(2, prefix + grid[0] * grid[1], 6, dtype=torch.float64, requires_grad=True)
    wanted = (x, *mixer.parameters())
    got, want = mixer(x), naive_efficientformer(mixer, x)
    torch.testing.assert_close(got, want)
    seed = torch.randn_like(got)
    torch.testing.assert_close(
        torch.autograd.grad(got, wanted, seed), torch.autograd.grad(want, wanted, seed)
    )


def pair():
    ours = build((3, 5))
    theirs = Attention2d(6, key_dim=4, num_heads=2, attn_ratio=1.5, resolution=(3, 5))
    theirs = theirs.double()
    theirs.eval()  # returns None
    with torch.no_grad():
        for name in ("q", "k", "v", "proj"):
            layer, source = getattr(theirs, name), getattr(ours, name)
            layer.conv.weight.copy_(source.linear.weight[:, :, None, None])
            layer.conv.bias.zero_()
            layer.bn.load_state_dict(source.bn.state_dict())
        theirs.v_local.conv.weight.copy_(ours.v_local.weight)
        theirs.v_local.conv.bias.zero_()
        theirs.v_local.bn.load_state_dict(ours.v_local_norm.state_dict())
        theirs.talking_head1.load_state_dict(ours.talking_head1.state_dict())
        theirs.talking_head2.load_state_dict(ours.talking_head2.state_dict())
        theirs.attention_biases.copy_(ours.position_bias)
    x = torch.randn(2, 15, 6, dtype=torch.float64)
    return ours, x, theirs(x.transpose(1, 2).reshape(2, 6, 3, 5)).flatten(2).transpose(1, 2)


def test_it_is_timms():
    ours, x, want = pair()
    torch.testing.assert_close(ours(x), want)


def test_folded_norms_leave_the_outputs_equal():
    ours, x, want = pair()
    fused = efficient_vits.fuse(ours)
    torch.testing.assert_close(fused(x), want)
    assert not any(isinstance(m, nn.BatchNorm1d) for m in fused.modules())
    torch.testing.assert_close(efficient_vits.fuse(fused)(x), want)


def test_another_bias_would_be_noticed():
    ours, x, want = pair()
    with torch.no_grad():
        ours.position_bias[0, 1] += 0.1
    with pytest.raises(AssertionError, match="not close"):
        torch.testing.assert_close(ours(x), want)


def test_a_finer_grid_keeps_what_nearness_is_worth():
    mixer = build((3, 3))
    with torch.no_grad():
        mixer.position_bias.copy_(-torch.tensor([[0, 1, 2, 1, 2, 3, 2, 3, 4.0]] * 2))
    mixer.set_grid_size((5, 5))
    table = mixer.position_bias.detach().reshape(2, 5, 5)
    # Corners stay, the middle of a linear table is its middle.
    torch.testing.assert_close(table[:, 0, 0], torch.zeros(2).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(table[:, 4, 4], torch.full((2,), -4.0).double())
    torch.testing.assert_close(table[:, 2, 2], torch.full((2,), -2.0).double())
    assert (table.diff(dim=1) < 0).all()
    assert (table.diff(dim=2) < 0).all()


def test_weights_of_another_resolution_load():
    small = {"depth": 1, "num_classes": 3}
    trained = timm.create_model("efficientformer_ti16", img_size=64, **small)
    nn.init.normal_(trained.blocks[0].attn.position_bias)
    model = timm.create_model("efficientformer_ti16", img_size=96, **small)
    loaded = efficient_vits.load_weights(model, trained.state_dict())
    assert "blocks.0.attn.position_bias" in loaded.resampled
    torch.testing.assert_close(
        model.blocks[0].attn.position_bias[:, 0], trained.blocks[0].attn.position_bias[:, 0]
    )
