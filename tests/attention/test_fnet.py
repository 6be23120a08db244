"""FNet against its formula, written as sums."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from efficient_vits.attention import create_attention


def phases(points):
    """exp(-2 pi i n m / points), (points, points)."""
    n = torch.arange(points, dtype=torch.float64)
    return torch.exp(-2j * torch.pi * torch.outer(n, n) / points)


def naive_fnet(x, fft_norm):
    from einops import einsum

    _, N, C = x.shape
    y = einsum(phases(N), x + 0j, phases(C), "n m, b m c, c d -> b n d").real
    return y / {"backward": 1, "ortho": (N * C) ** 0.5, "forward": N * C}[fft_norm]


def compare(twin, tokens, dim, fft_norm, seed):
    torch.manual_seed(seed)
    mixer = create_attention("fnet", dim, fft_norm=fft_norm)
    x = torch.randn(2, tokens, dim, dtype=torch.float64, requires_grad=True)
    target = torch.randn_like(x)
    results = []
    for forward in (mixer, lambda x: twin(x, fft_norm)):
        x.grad = None
        y = forward(x)
        (y * target).sum().backward()
        results.append([y.detach(), x.grad])
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow)  # float64: rounding alone


@settings(max_examples=30, deadline=None)
@given(
    tokens=st.integers(1, 23),
    dim=st.integers(1, 13),
    fft_norm=st.sampled_from(["backward", "ortho", "forward"]),
    seed=st.integers(0, 99),
)
def test_equals_its_naive_twin(tokens, dim, fft_norm, seed):
    compare(naive_fnet, tokens, dim, fft_norm, seed)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x, fft_norm: naive_fnet(x, fft_norm) + 1e-4 * x,
        lambda x, fft_norm: naive_fnet(x, "ortho"),
        # The transform of the real part of a transform: one axis after the other is not enough.
        lambda x, fft_norm: (phases(7) @ (x @ phases(6).real + 0j)).real / 42,
    ],
    ids=["added", "norm", "real parts"],
)
def test_a_wrong_twin_is_noticed(wrong):
    with pytest.raises(AssertionError, match="not close"):
        compare(wrong, 7, 6, "forward", 0)


def test_has_no_parameters_and_takes_any_number_of_tokens():
    mixer = create_attention("fnet", 8, grid_size=(3, 5))
    assert list(mixer.state_dict()) == []
    assert mixer(torch.randn(2, 11, 8)).shape == (2, 11, 8)


def test_an_unknown_norm_is_refused():
    with pytest.raises(ValueError, match="backward, ortho, forward, got 'layer'"):
        create_attention("fnet", 8, fft_norm="layer")
