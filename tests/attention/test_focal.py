"""Focal modulation against its formula, gate by gate."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from efficient_vits.attention import create_attention


def naive_focal(mixer, x, normalize=False):
    P, (H, W), m = mixer.num_prefix_tokens, mixer.grid_size, mixer.modulation
    C = x.shape[-1]
    linear = x[:, P:] @ m.f.weight[:, :, 0, 0].T + (0 if m.f.bias is None else m.f.bias)
    q, context, gates = linear[..., :C], linear[..., C : 2 * C], linear[..., 2 * C :]
    total = torch.zeros_like(q)
    for level, (conv, _) in enumerate(m.focal_layers):
        k = conv.kernel_size[0]
        image = F.pad(context.transpose(1, 2).reshape(-1, C, H, W), [k // 2] * 4)
        shifted = [
            image[:, :, i : i + H, j : j + W] * conv.weight[:, 0, i, j].view(-1, 1, 1)
            for i in range(k)
            for j in range(k)
        ]
        context = F.gelu(sum(shifted)).flatten(2).transpose(1, 2)
        total = total + context * gates[..., level : level + 1]
    total = total + F.gelu(context.mean(dim=1, keepdim=True)) * gates[..., -1:]
    if normalize:
        total = total / gates.shape[-1]
    h = total @ m.h.weight[:, :, 0, 0].T + (0 if m.h.bias is None else m.h.bias)
    y = (q * h) @ m.proj.weight[:, :, 0, 0].T + (0 if m.proj.bias is None else m.proj.bias)
    return torch.cat([x[:, :P], y], dim=1)


@settings(deadline=None, max_examples=15)
@given(
    grid=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    prefix=st.integers(0, 2),
    level=st.integers(1, 3),
    bias=st.booleans(),
    normalize=st.booleans(),
)
def test_outputs_and_gradients_are_those_of_the_formula(grid, prefix, level, bias, normalize):
    mixer = create_attention(
        "focal",
        5,
        grid_size=grid,
        num_prefix_tokens=prefix,
        focal_level=level,
        qkv_bias=bias,
        proj_bias=bias,
        normalize_modulator=normalize,
    ).double()
    x = torch.randn(2, prefix + grid[0] * grid[1], 5, dtype=torch.float64, requires_grad=True)
    wanted = (x, *mixer.parameters())
    got, want = mixer(x), naive_focal(mixer, x, normalize)
    torch.testing.assert_close(got, want)
    seed = torch.randn_like(got)
    torch.testing.assert_close(
        torch.autograd.grad(got, wanted, seed), torch.autograd.grad(want, wanted, seed)
    )


def test_a_transposed_grid_would_be_noticed():
    mixer = create_attention("focal", 4, grid_size=(3, 4), num_prefix_tokens=0).double()
    x = torch.randn(1, 12, 4, dtype=torch.float64)
    want = mixer(x)
    mixer.set_grid_size((4, 3))
    with pytest.raises(AssertionError, match="not close"):
        torch.testing.assert_close(mixer(x), want)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"focal_window": 4}, "focal_window"),
        ({"focal_level": 0}, "focal_level"),
        ({"attn_drop": 0.1}, "attn_drop"),
        ({"grid_size": None}, "grid_size"),
    ],
)
def test_impossible_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        create_attention("focal", 8, **{"grid_size": (2, 2), **arguments})
