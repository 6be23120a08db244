"""Halo attention against its formula, pixel by pixel, and against timm's where the two agree."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import get_attn

from efficient_vits.attention import create_attention
from efficient_vits.attention.halo import halo_average, halo_weights


def window(pixel, block, halo, size):
    """Keys along one axis that a pixel sees."""
    first = pixel // block * block
    return range(max(first - halo, 0), min(first + block + halo, size))


def naive_grid(q, k, v, height_rel, width_rel, block, halo, stride, see=window):
    """(B, heads, d, H, W) each, `q` on every stride-th pixel; one query at a time."""
    H, W = k.shape[3:]
    out = []
    for y in range(0, H, stride):
        for x in range(0, W, stride):
            rows, columns = see(y, block, halo, H), see(x, block, halo, W)
            logits, values = [], []
            for i in rows:
                for j in columns:
                    r = height_rel[i - y + block - 1 + halo] + width_rel[j - x + block - 1 + halo]
                    key = k[:, :, :, i, j] + r
                    logits.append((q[:, :, :, y // stride, x // stride] * key).sum(-1))
                    values.append(v[:, :, :, i, j])
            weights = torch.stack(logits, dim=-1).softmax(-1)  # (B, heads, keys)
            out.append(torch.einsum("bhk,kbhe->bhe", weights, torch.stack(values)))
    return torch.stack(out, dim=-1).reshape(*v.shape[:3], *q.shape[3:])


def naive_halo(mixer, x, see=window):
    H, W = mixer.grid_size
    P, h, d = mixer.num_prefix_tokens, mixer.num_heads, mixer.head_dim
    qkv = mixer.qkv(x[:, P:]).reshape(x.shape[0], H, W, 3, h, d).permute(3, 0, 4, 5, 1, 2)
    q, k, v = qkv.unbind(0)
    tables = (mixer.height_rel, mixer.width_rel)
    y = naive_grid(q / d**0.5, k, v, *tables, mixer.block_size, mixer.halo_size, 1, see)
    y = mixer.proj(y.permute(0, 3, 4, 1, 2).reshape(x.shape[0], H * W, h * d))
    return torch.cat([x[:, :P], y], dim=1)


def compare(twin, grid, block, halo, heads=2, head_dim=3, prefix=0, seed=0):
    torch.manual_seed(seed)
    dim = heads * head_dim
    mixer = create_attention(
        "halo",
        dim,
        num_heads=heads,
        grid_size=grid,
        num_prefix_tokens=prefix,
        block_size=block,
        halo_size=halo,
    ).double()
    x = torch.randn(2, prefix + grid[0] * grid[1], dim, dtype=torch.float64, requires_grad=True)
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
    grid=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    block=st.integers(1, 4),
    halo=st.integers(0, 3),
    heads=st.integers(1, 2),
    head_dim=st.integers(1, 3),
    prefix=st.integers(0, 2),
    seed=st.integers(0, 99),
)
def test_equals_its_naive_twin(grid, block, halo, heads, head_dim, prefix, seed):
    compare(naive_halo, grid, block, halo, heads, head_dim, prefix, seed)


def no_halo(pixel, block, halo, size):
    return window(pixel, block, 0, size)


def one_sided(pixel, block, halo, size):
    return range(pixel // block * block, min(pixel // block * block + block + halo, size))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda mixer, x: naive_halo(mixer, x) + 1e-4 * x,
        lambda mixer, x: naive_halo(mixer, x, no_halo),
        lambda mixer, x: naive_halo(mixer, x, one_sided),
    ],
)
def test_a_wrong_twin_is_noticed(wrong):
    with pytest.raises(AssertionError, match="not close"):
        compare(wrong, (5, 7), 2, 1)


@settings(max_examples=20, deadline=None)
@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    half_block=st.integers(1, 3),
    halo=st.integers(0, 3),
    seed=st.integers(0, 99),
)
def test_strided_queries_are_every_second_one(size, half_block, halo, seed):
    """Positions included: a displacement is the same number of pixels at any stride."""
    torch.manual_seed(seed)
    block, (H, W) = 2 * half_block, size
    q, k, v = torch.randn(3, 2, 2, 3, H, W, dtype=torch.float64)
    tables = torch.randn(2, 2 * (block + halo) - 1, 3, dtype=torch.float64)
    every = naive_grid(q, k, v, *tables, block, halo, 1)
    q = q[..., ::2, ::2]
    weights = halo_weights(q, k, *tables, block, halo, 2)
    y = halo_average(weights, v, q.shape[3], q.shape[4], block, halo, 2)
    torch.testing.assert_close(y, every[..., ::2, ::2])


def test_is_timms_where_the_window_lies_inside_the_image():
    """At the edge timm attends to zeros beyond it."""
    torch.manual_seed(0)
    block, halo, heads = 4, 2, 2
    theirs = get_attn("halo")(
        8, num_heads=heads, block_size=block, halo_size=halo, scale_pos_embed=True
    ).double()
    ours = create_attention(
        "halo", 8, num_heads=heads, grid_size=(12, 12), num_prefix_tokens=0, block_size=block,
        halo_size=halo, qkv_bias=False, proj_bias=False,
    ).double()  # fmt: skip
    with torch.no_grad():
        k, v = theirs.kv.weight.reshape(heads, 2, 4, 8).unbind(1)
        ours.qkv.weight.copy_(
            torch.cat([theirs.q.weight.flatten(1), k.reshape(8, 8), v.reshape(8, 8)])
        )
        ours.proj.weight.copy_(torch.eye(8))
        # timm counts keys from the corner of the window; its first entries are never read.
        ours.height_rel.copy_(theirs.pos_embed.height_rel[2 * halo :])
        ours.width_rel.copy_(theirs.pos_embed.width_rel[2 * halo :])
    x = torch.randn(2, 8, 12, 12, dtype=torch.float64)
    y = ours(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(2, 8, 12, 12)
    middle = slice(block, 2 * block)
    expected = theirs(x)
    torch.testing.assert_close(y[..., middle, middle], expected[..., middle, middle])
    assert not torch.allclose(y, expected)


@pytest.mark.parametrize("grid", [(2, 3), (3, 3), (5, 4)])
def test_padding_has_no_weight(grid):
    """One block sees the whole grid: whatever the padding, it is attention over all patches."""
    mixer = create_attention("halo", 8, num_heads=2, grid_size=grid, num_prefix_tokens=0)
    with torch.no_grad():
        mixer.height_rel.zero_()
        mixer.width_rel.zero_()
    softmax = create_attention("softmax", 8, num_heads=2, num_prefix_tokens=0)
    softmax.load_state_dict({k: v for k, v in mixer.state_dict().items() if "rel" not in k})
    x = torch.randn(2, grid[0] * grid[1], 8)
    torch.testing.assert_close(mixer(x), softmax(x))


def test_sizes_out_of_range_are_refused():
    for own in ({"block_size": 0}, {"halo_size": -1}):
        with pytest.raises(ValueError, match="block_size >= 1"):
            create_attention("halo", 8, num_heads=2, grid_size=(4, 4), **own)
    with pytest.raises(ValueError, match="grid_size"):
        create_attention("halo", 8, num_heads=2)
