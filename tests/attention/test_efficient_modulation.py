"""Efficient modulation against its formula: a sum over neighbours, then channel by channel."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from efficient_vits.attention import create_attention


def naive_modulation(mixer, x, share=lambda j, C: j % C):
    """Token by token; channel j of the values meets channel share(j, C) of the context."""
    P, (H, W), C = mixer.num_prefix_tokens, mixer.grid_size, x.shape[-1]
    f, filters = mixer.f(x[:, P:]), mixer.conv.weight[:, 0]
    reach, rows = filters.shape[-1] // 2, []
    for n in range(H * W):
        context = mixer.conv.bias
        for m in range(H * W):
            i, j = m // W - n // W + reach, m % W - n % W + reach
            if 0 <= i <= 2 * reach and 0 <= j <= 2 * reach:
                context = context + filters[:, i, j] * f[:, m]
        context = mixer.g(torch.nn.functional.gelu(context))
        value = mixer.v(x[:, P + n])
        if mixer.expansion > 1:
            value = torch.nn.functional.gelu(value)
        picked = [share(j, C) for j in range(value.shape[-1])]
        rows.append(mixer.proj(value * context[:, picked]))
    return torch.cat([x[:, :P], torch.stack(rows, dim=1)], dim=1)


def compare(twin, dim, grid, prefix, expansion, kernel_size, seed):
    torch.manual_seed(seed)
    mixer = create_attention(
        "efficient_modulation",
        dim,
        grid_size=grid,
        num_prefix_tokens=prefix,
        expansion=expansion,
        kernel_size=kernel_size,
    ).double()
    tokens = prefix + grid[0] * grid[1]
    x = torch.randn(2, tokens, dim, dtype=torch.float64, requires_grad=True)
    target, results = torch.randn_like(x), []
    for forward in (mixer, lambda x: twin(mixer, x)):
        mixer.zero_grad()
        x.grad = None
        y = forward(x)
        (y * target).sum().backward()
        results.append([y.detach(), x.grad, *(p.grad for p in mixer.parameters())])
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow)  # float64: rounding alone


@settings(max_examples=25, deadline=None)
@given(
    dim=st.integers(1, 7),
    grid=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    prefix=st.integers(0, 2),
    expansion=st.integers(1, 3),
    kernel_size=st.sampled_from([1, 3, 7]),
    seed=st.integers(0, 99),
)
def test_equals_its_naive_twin(dim, grid, prefix, expansion, kernel_size, seed):
    compare(naive_modulation, dim, grid, prefix, expansion, kernel_size, seed)


def neighbours_share(mixer, x):
    """Values side by side have one context, and not those a width apart."""
    return naive_modulation(mixer, x, lambda j, C: j // mixer.expansion)


@pytest.mark.parametrize(
    "wrong", [lambda mixer, x: naive_modulation(mixer, x) + 1e-4 * x, neighbours_share]
)
def test_a_wrong_twin_is_noticed(wrong):
    with pytest.raises(AssertionError, match="not close"):
        compare(wrong, 5, (3, 2), 1, 2, 3, 0)


def test_sees_as_far_as_its_kernel():
    mixer = create_attention(
        "efficient_modulation", 4, grid_size=(1, 9), num_prefix_tokens=0, kernel_size=5
    )
    x = torch.randn(1, 9, 4)
    changed = x.clone()
    changed[:, 4] += 1
    moved = (mixer(x) - mixer(changed)).abs().amax(dim=(0, 2)) > 1e-6
    assert moved.tolist() == [False, False, True, True, True, True, True, False, False]


def test_a_context_of_zero_lets_nothing_through():
    mixer = create_attention(
        "efficient_modulation", 4, grid_size=(2, 2), num_prefix_tokens=1, expansion=3
    )
    with torch.no_grad():
        mixer.g.weight.zero_()
        mixer.g.bias.zero_()
    x = torch.randn(2, 5, 4)
    y = mixer(x)
    assert torch.equal(y[:, 1:], mixer.proj.bias.expand(2, 4, 4))
    assert torch.equal(y[:, :1], x[:, :1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"expansion": 0}, "expansion >= 1, got 0"),
        ({"kernel_size": 4}, "odd kernel_size, got 4"),
        ({"attn_drop": 0.1}, "attn_drop=0.1"),
        ({"grid_size": None}, "grid_size"),
    ],
)
def test_options_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        create_attention("efficient_modulation", 8, **{"grid_size": (2, 2), **arguments})


def test_parameters_are_the_same_on_every_grid():
    mixer = create_attention("efficient_modulation", 4, grid_size=(2, 2), num_prefix_tokens=1)
    mixer.set_grid_size((3, 5))
    assert mixer(torch.randn(2, 16, 4)).shape == (2, 16, 4)
    with pytest.raises(AssertionError, match="set_grid_size"):
        mixer(torch.randn(2, 5, 4))
