"""Multi-scale linear attention against its N x N matrix, and against timm's module."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.efficientvit_mit import LiteMLA

import efficient_vits
from efficient_vits.attention import create_attention


def stirred(norm):
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)


def build(grid, prefix=0, dim=12, heads=3, **own):
    mixer = create_attention(
        "multi_scale_linear",
        dim,
        num_heads=heads,
        grid_size=grid,
        num_prefix_tokens=prefix,
        **own,
    )
    stirred(mixer.proj.bn)
    return mixer.double().eval()


def naive_multi_scale(mixer, x):
    P, (H, W), d, C = mixer.num_prefix_tokens, mixer.grid_size, mixer.head_dim, x.shape[-1]
    qkv = mixer.qkv(x[:, P:]).transpose(1, 2)  # (B, 3 C, N)
    scales = [qkv]
    for near, within in mixer.aggregations:
        image = near(qkv.reshape(-1, 3 * C, H, W)).flatten(2)
        blocks = [
            within.weight[i : i + d, :, 0, 0] @ image[:, i : i + d] for i in range(0, 3 * C, d)
        ]
        bias = 0 if within.bias is None else within.bias.unsqueeze(1)
        scales.append(torch.cat(blocks, dim=1) + bias)
    heads = []
    for scale in scales:
        q, k, v = scale.chunk(3, dim=1)
        for i in range(0, C, d):
            a = F.relu(q[:, i : i + d].transpose(1, 2)) @ F.relu(k[:, i : i + d])  # (B, N, N)
            a = a / (a.sum(-1, keepdim=True) + 1e-6)
            heads.append(a @ v[:, i : i + d].transpose(1, 2))
    y, bn = mixer.proj.linear(torch.cat(heads, dim=-1)), mixer.proj.bn
    y = (y - bn.running_mean) / (bn.running_var + bn.eps).sqrt() * bn.weight + bn.bias
    return torch.cat([x[:, :P], y], dim=1)


@settings(deadline=None, max_examples=15)
@given(
    grid=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    prefix=st.integers(0, 2),
    scales=st.sampled_from([(), (5,), (3, 5)]),
    bias=st.booleans(),
)
def test_outputs_and_gradients_are_those_of_the_formula(grid, prefix, scales, bias):
    mixer = build(grid, prefix, scales=scales, qkv_bias=bias)
    x = torch.randn(2, prefix + grid[0] * grid[1], 12, dtype=torch.float64, requires_grad=True)
    wanted = (x, *mixer.parameters())
    got, want = mixer(x), naive_multi_scale(mixer, x)
    torch.testing.assert_close(got, want)
    seed = torch.randn_like(got)
    torch.testing.assert_close(
        torch.autograd.grad(got, wanted, seed),
        torch.autograd.grad(want, wanted, seed),
        rtol=1e-5,  # tokens that hardly match anything divide by little
        atol=1e-6,
    )


def pair():
    """timm's channels go head by head, ours first to queries, keys and values."""
    ours = build((3, 5), dim=12, heads=3, qkv_bias=False).float()
    theirs = LiteMLA(12, 12, heads=3, dim=4, scales=(5,)).eval()
    order = torch.arange(36).reshape(3, 3, 4).transpose(0, 1).flatten()  # theirs[i] is ours[order]
    with torch.no_grad():
        theirs.qkv.conv.weight.copy_(ours.qkv.weight[order, :, None, None])
        for got, want in zip(theirs.aggreg[0], ours.aggregations[0], strict=True):
            got.weight.copy_(want.weight[order])
        theirs.proj.conv.weight.copy_(ours.proj.linear.weight[:, :, None, None])
        theirs.proj.norm.load_state_dict(ours.proj.bn.state_dict())
    x = torch.randn(2, 15, 12)
    return ours, x, theirs(x.transpose(1, 2).reshape(2, 12, 3, 5)).flatten(2).transpose(1, 2)


# timm adds 1e-5 to the sums where we add 1e-6.
TOLERANCE = {"rtol": 1e-3, "atol": 1e-3}


def test_it_is_timms():
    ours, x, want = pair()
    torch.testing.assert_close(ours(x), want, **TOLERANCE)
    torch.testing.assert_close(efficient_vits.fuse(ours)(x), want, **TOLERANCE)
    assert "proj.bn" in efficient_vits.fused_modules(efficient_vits.fuse(ours))


def test_heads_in_another_order_would_be_noticed():
    ours, x, want = pair()
    with torch.no_grad():
        ours.qkv.weight.copy_(ours.qkv.weight.roll(4, 0))
    with pytest.raises(AssertionError, match="not close"):
        torch.testing.assert_close(ours(x), want, **TOLERANCE)


def test_an_even_scale_is_refused():
    with pytest.raises(ValueError, match="odd scales"):
        build((2, 2), scales=(4,))
