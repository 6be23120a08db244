"""Wavelet attention against its formula, and the transform, which loses nothing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from efficient_vits.attention import create_attention
from efficient_vits.attention.wavelet import BANDS, WaveletsBlock, haar, inverse_haar, pad_grid


def bands(dtype=torch.float64):
    return torch.tensor(BANDS, dtype=dtype)


def naive_bands(x):
    """Sums and differences of every 2 x 2 pixels: (B, C, H, W) -> (B, 4 C, H / 2, W / 2)."""
    a, b = x[:, :, ::2, ::2], x[:, :, ::2, 1::2]
    c, d = x[:, :, 1::2, ::2], x[:, :, 1::2, 1::2]
    return torch.cat([a + b + c + d, a + b - c - d, a - b + c - d, a - b - c + d], dim=1) / 2


def naive_inverse(y):
    ll, lh, hl, hh = y.chunk(4, dim=1)
    B, C, H, W = ll.shape
    x = y.new_empty(B, C, 2 * H, 2 * W)
    x[:, :, ::2, ::2] = (ll + lh + hl + hh) / 2
    x[:, :, ::2, 1::2] = (ll + lh - hl - hh) / 2
    x[:, :, 1::2, ::2] = (ll - lh + hl - hh) / 2
    x[:, :, 1::2, 1::2] = (ll - lh - hl + hh) / 2
    return x


def naive_wavelet(mixer, x):
    """Token by token, head by head."""
    from einops import einsum, rearrange

    P, (H, W), step = mixer.num_prefix_tokens, mixer.grid_size, 2 * mixer.sr_ratio
    image = rearrange(x[:, P:], "b (h w) c -> b c h w", h=H)
    rows = [min(i, H - 1) for i in range(-(-H // step) * step)]
    columns = [min(j, W - 1) for j in range(-(-W // step) * step)]
    z = mixer.filter(naive_bands(mixer.reduce(image[:, :, rows][..., columns])))
    local = rearrange(naive_inverse(z)[:, :, :H, :W], "b c h w -> b (h w) c")
    s = mixer.sr_ratio
    if s > 1:
        patches = rearrange(z, "b c (h i) (w j) -> b (h w) c i j", i=s, j=s)
        keys = einsum(patches, mixer.kv_embed.weight, "b n c i j, o c i j -> b n o")
        keys = keys + mixer.kv_embed.bias
    else:
        keys = rearrange(z, "b c h w -> b (h w) c")
    k, v = mixer.kv(mixer.kv_norm(keys)).chunk(2, dim=-1)
    q, heads = mixer.q(x[:, P:]), []
    for i in range(mixer.num_heads):
        own = slice(i * mixer.head_dim, (i + 1) * mixer.head_dim)
        logits = einsum(q[..., own], k[..., own], "b n d, b m d -> b n m")
        heads.append((logits / mixer.head_dim**0.5).softmax(-1) @ v[..., own])
    return torch.cat([x[:, :P], mixer.proj(torch.cat([*heads, local], dim=-1))], dim=1)


def compare(twin, heads, head_dim, grid, prefix, sr_ratio, seed):
    torch.manual_seed(seed)
    mixer = create_attention(
        "wavelet",
        heads * head_dim,
        num_heads=heads,
        grid_size=grid,
        num_prefix_tokens=prefix,
        sr_ratio=sr_ratio,
    ).double()
    # In training, padded rows and columns take part in the statistics.
    tokens = prefix + grid[0] * grid[1]
    x = torch.randn(3, tokens, heads * head_dim, dtype=torch.float64, requires_grad=True)
    target, results = torch.randn_like(x), []
    for forward in (mixer, lambda x: twin(mixer, x)):
        mixer.zero_grad()
        x.grad = None
        y = forward(x)
        (y * target).sum().backward()
        results.append([y.detach(), x.grad, *(p.grad for p in mixer.parameters())])
    for fast, slow in zip(*results, strict=True):
        # float64, magnified where a norm divides by a small variance
        torch.testing.assert_close(fast, slow, rtol=1e-6, atol=1e-7)


@settings(max_examples=25, deadline=None)
@given(
    heads=st.integers(1, 3),
    head_dim=st.sampled_from([4, 8]),
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    prefix=st.integers(0, 2),
    sr_ratio=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_equals_its_naive_twin(heads, head_dim, grid, prefix, sr_ratio, seed):
    compare(naive_wavelet, heads, head_dim, grid, prefix, sr_ratio, seed)


def zero_padded(mixer, x):
    """What lies outside the grid is zero and not the last row again."""
    H, W = mixer.grid_size
    image = x.reshape(x.shape[0], H, W, -1)
    padded = torch.zeros(x.shape[0], H + H % 2, W + W % 2, x.shape[2], dtype=x.dtype)
    padded[:, :H, :W] = image
    whole = mixer.mix(padded)[:, :H, :W]
    return whole.reshape(x.shape)


@pytest.mark.parametrize(
    "wrong", [lambda mixer, x: naive_wavelet(mixer, x) + 1e-4 * x, zero_padded]
)
def test_a_wrong_twin_is_noticed(wrong):
    with pytest.raises(AssertionError, match="not close"):
        compare(wrong, 2, 4, (3, 5), 0, 1, 0)


@settings(max_examples=25, deadline=None)
@given(
    channels=st.integers(1, 5),
    height=st.integers(1, 6).map(lambda n: 2 * n),
    width=st.integers(1, 6).map(lambda n: 2 * n),
    seed=st.integers(0, 99),
)
def test_the_transform_is_invertible_orthonormal_and_the_known_one(channels, height, width, seed):
    torch.manual_seed(seed)
    x = torch.randn(2, channels, height, width, dtype=torch.float64)
    y = haar(x, bands())
    assert y.shape == (2, 4 * channels, height // 2, width // 2)
    torch.testing.assert_close(y, naive_bands(x))
    torch.testing.assert_close(inverse_haar(y, bands()), x)
    torch.testing.assert_close(haar(inverse_haar(y, bands()), bands()), y)
    torch.testing.assert_close(y.square().sum(), x.square().sum())


def test_half_the_bands_are_not_enough():
    """The round trip above is no accident of smooth images."""
    x = torch.randn(2, 3, 6, 8, dtype=torch.float64)
    y = haar(x, bands())
    y[:, 6:] = 0
    assert (inverse_haar(y, bands()) - x).abs().max() > 0.1


def test_a_constant_image_has_one_band():
    y = haar(torch.ones(1, 3, 4, 6), bands(torch.float32))
    assert torch.equal(y[:, :3], torch.full((1, 3, 2, 3), 2.0))
    assert not y[:, 3:].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_constants_are_exact_in_half_precision(dtype):
    assert torch.equal(bands(dtype).double(), bands())
    y = haar(torch.ones(1, 2, 4, 4, dtype=dtype), bands(torch.float32))
    assert y.dtype == dtype


def test_padding_repeats_the_last_row_and_column():
    x = torch.randn(1, 3, 5, 2)
    y = pad_grid(x, 4)
    assert y.shape == (1, 4, 8, 2)
    assert torch.equal(y[:, :3, :5], x)
    assert torch.equal(y[:, 3, :5], x[:, 2])
    assert torch.equal(y[:, :3, 5:], x[:, :, 4:].expand(-1, -1, 3, -1))
    assert pad_grid(y, 4) is y


def test_there_is_a_quarter_of_the_keys():
    block = WaveletsBlock(16, 2, sr_ratio=1)
    seen = []
    block.kv.register_forward_hook(lambda module, args, output: seen.append(output.shape[1]))
    block(torch.randn(2, 6, 8, 16))
    assert seen == [6 * 8 // 4]


def test_takes_any_grid_and_keeps_no_constants_in_files():
    block = WaveletsBlock(16, 2, sr_ratio=2)
    assert "bands" not in block.state_dict()
    for grid in ((1, 1), (1, 7), (5, 3), (8, 8)):
        assert block(torch.randn(2, *grid, 16)).shape == (2, *grid, 16)


def test_constants_come_back_after_the_meta_device():
    block = WaveletsBlock(8, 2, device="meta").to_empty(device="cpu")
    block.bands.fill_(float("nan"))
    block.reset_parameters()
    assert torch.equal(block.bands, bands(torch.float32))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 6, "num_heads": 2}, "dim=6"),
        ({"dim": 8, "num_heads": 3}, "dim=8, num_heads=3"),
        ({"dim": 8, "num_heads": 2, "sr_ratio": 0}, "sr_ratio >= 1, got 0"),
    ],
)
def test_options_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        create_attention("wavelet", grid_size=(2, 2), **arguments)


def test_needs_the_grid_and_follows_another():
    with pytest.raises(ValueError, match="grid_size"):
        create_attention("wavelet", 8, num_heads=2)
    mixer = create_attention("wavelet", 8, num_heads=2, grid_size=(2, 2), num_prefix_tokens=1)
    mixer.set_grid_size((3, 5))
    assert mixer(torch.randn(2, 16, 8)).shape == (2, 16, 8)
    with pytest.raises(AssertionError, match="set_grid_size"):
        mixer(torch.randn(2, 5, 8))
