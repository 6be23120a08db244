"""AFNO against its formula: complex numbers, sums over the whole spectrum, mode by mode."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from efficient_vits.attention import create_attention
from efficient_vits.efficiency import count_flops


def phases(points):
    """exp(-2 pi i n m / points) / sqrt(points), (points, points)."""
    n = torch.arange(points, dtype=torch.float64)
    return torch.exp(-2j * torch.pi * torch.outer(n, n) / points) / points**0.5


def naive_afno(mixer, x):
    from einops import einsum, rearrange

    H, W = mixer.grid_size
    P = mixer.num_prefix_tokens
    image = rearrange(x[:, P:], "b (h w) c -> b h w c", h=H) + 0j
    modes = einsum(phases(H), image, phases(W), "h i, b i j c, j w -> b h w c")

    def parts(z, function):
        return torch.complex(function(z.real), function(z.imag))

    def shrink(z):
        return z.sign() * (z.abs() - mixer.sparsity_threshold).clamp(min=0)

    def mlp(z):
        z = rearrange(z, "b (k i) -> b k i", k=mixer.w1.shape[1])
        for w, b, act in ((mixer.w1, mixer.b1, torch.relu), (mixer.w2, mixer.b2, shrink)):
            w, b = torch.complex(*w), torch.complex(*b)
            z = parts(einsum(z, w, "b k i, k i o -> b k o") + b, act)
        return rearrange(z, "b k o -> b (k o)")

    fraction = mixer.hard_thresholding_fraction
    out = torch.zeros_like(modes)
    for h in range(H):
        for v in range(W // 2 + 1):
            row = min(h, H - h) < max(int(fraction * (H // 2 + 1)), 1)
            column = v < max(int(fraction * (W // 2 + 1)), 1)
            if row and column:
                z = mlp(modes[:, h, v])
                # Both ends of the real wave; the two are one where the frequency is its own mirror.
                own_mirror = (2 * v) % W == 0
                pick = torch.zeros(H, W, dtype=torch.complex128)
                pick[h, v] = 0.5 if own_mirror else 1
                mirror = torch.zeros(H, W, dtype=torch.complex128)
                mirror[-h % H, -v % W] = 0.5 if own_mirror else 1
                out = out + einsum(pick, z, "h w, b c -> b h w c")
                out = out + einsum(mirror, z.conj(), "h w, b c -> b h w c")
    y = einsum(phases(H).conj(), out, phases(W).conj(), "h i, b i j c, j w -> b h w c")
    assert y.imag.abs().max() < 1e-9
    return torch.cat([x[:, :P], rearrange(y.real, "b h w c -> b (h w) c")], dim=1)


def build(grid=(4, 5), prefix=0, dim=6, num_blocks=2, **own):
    mixer = create_attention(
        "afno", dim, grid_size=grid, num_prefix_tokens=prefix, num_blocks=num_blocks, **own
    ).double()
    with torch.no_grad():
        for p in mixer.parameters():
            p.normal_(std=0.7)
    return mixer.eval()


def tokens(grid=(4, 5), prefix=0, dim=6):
    return torch.randn(2, prefix + grid[0] * grid[1], dim, dtype=torch.float64)


def compare(twin, grid, prefix, num_blocks, seed, **own):
    torch.manual_seed(seed)
    mixer = build(grid, prefix, 3 * num_blocks, num_blocks, **own)
    x = tokens(grid, prefix, 3 * num_blocks).requires_grad_()
    target, results = torch.randn_like(x), []
    for forward in (mixer, lambda x: twin(mixer, x)):
        mixer.zero_grad()
        x.grad = None
        y = forward(x)
        (y * target).sum().backward()
        results.append([y.detach(), x.grad, *(p.grad for p in mixer.parameters())])
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow)  # float64: rounding alone


@settings(max_examples=20, deadline=None)
@given(
    grid=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    prefix=st.integers(0, 2),
    num_blocks=st.integers(1, 3),
    threshold=st.sampled_from([0.0, 0.01, 0.5]),
    fraction=st.floats(0.1, 1.0),
    seed=st.integers(0, 99),
)
def test_equals_its_naive_twin(grid, prefix, num_blocks, threshold, fraction, seed):
    own = {"sparsity_threshold": threshold, "hard_thresholding_fraction": fraction}
    compare(naive_afno, grid, prefix, num_blocks, seed, **own)


def other_fraction(mixer, x):
    mixer.hard_thresholding_fraction = 0.5
    y = naive_afno(mixer, x)
    mixer.hard_thresholding_fraction = 1.0
    return y


@pytest.mark.parametrize(
    "wrong", [lambda mixer, x: naive_afno(mixer, x) + 1e-4 * x, other_fraction]
)
def test_a_wrong_twin_is_noticed(wrong):
    with pytest.raises(AssertionError, match="not close"):
        compare(wrong, (4, 5), 1, 2, 0)


def test_shrinking_everything_leaves_nothing():
    mixer, x = build(prefix=1, sparsity_threshold=1e6), tokens(prefix=1)
    assert torch.equal(mixer(x)[:, 1:], torch.zeros_like(x[:, 1:]))
    assert build(prefix=1)(x)[:, 1:].abs().min() > 0


def test_without_high_frequencies_an_image_is_smooth_and_cheaper():
    """Of one frequency along each axis, the mean is left: all tokens are equal."""
    mixer, x = build(hard_thresholding_fraction=0.1), tokens()
    y = mixer(x)
    torch.testing.assert_close(y, y.mean(dim=1, keepdim=True).expand_as(y))
    costs = [
        count_flops(build((8, 8), dim=24, hard_thresholding_fraction=f).float(), (64, 24))
        for f in (0.5, 1.0)
    ]
    # 2 columns of 5 and 3 rows of 8
    assert costs[0].by_operator["baddbmm"] == costs[1].by_operator["baddbmm"] * 2 * 3 // (5 * 8)


def test_parameters_are_the_same_on_every_grid():
    mixer = build()
    before = {name: value.clone() for name, value in mixer.state_dict().items()}
    mixer.set_grid_size((7, 3))
    assert mixer(tokens((7, 3))).shape == (2, 21, 6)
    assert all(torch.equal(value, before[name]) for name, value in mixer.state_dict().items())


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"num_blocks": 4}, "dim=6, num_blocks=4"),
        ({"num_blocks": 0}, "num_blocks=0"),
        ({"sparsity_threshold": -0.1}, "got -0.1"),
        ({"hard_thresholding_fraction": 0}, "got 0"),
        ({"hard_thresholding_fraction": 1.5}, "got 1.5"),
    ],
)
def test_options_out_of_range_are_refused(own, message):
    with pytest.raises(ValueError, match=message):
        build(**own)
