"""Window attention against its definition: pairs of tokens, without padding, rolling or masks."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.swin_transformer_v2 import SwinTransformerV2Block

from efficient_vits.attention import create_attention
from efficient_vits.attention._windows import window_mask

NAMES = ["window", "window_cosine"]


def build(name, grid, depth=1, prefix=0, dim=6, heads=2, window=3, **own):
    mixer = create_attention(
        name,
        dim,
        num_heads=heads,
        grid_size=grid,
        num_prefix_tokens=prefix,
        depth=depth,
        window_size=window,
        **own,
    ).double()
    with torch.no_grad():
        for p in mixer.parameters():
            p.normal_(std=0.7)
    return mixer.eval()


def table_bias(mixer, dy, dx):
    """Swin: one learned number per head and relative position."""
    w = mixer.window_size[0]
    return mixer.relative_position_bias_table[(dy + w - 1) * (2 * w - 1) + dx + w - 1]


def continuous_bias(mixer, dy, dx):
    """Swin V2: an MLP of logarithmic coordinates, 8 at the rim of the window."""
    w = mixer.window_size[0]

    def log(d):
        d = 8 * d / max(w - 1, 1)
        return math.copysign(math.log2(abs(d) + 1) / 3, d)

    place = torch.tensor([log(dy), log(dx)], dtype=torch.float64)
    return 16 * torch.sigmoid(mixer.cpb_mlp(place))


def naive(mixer, x, shifted, cosine):
    H, W = mixer.windows.grid_size
    P, w, h = mixer.num_prefix_tokens, mixer.window_size[0], mixer.num_heads
    down = w // 2 if shifted and w < H else 0
    right = w // 2 if shifted and w < W else 0
    d = x.shape[-1] // h
    out = [x[:, i] for i in range(P)]
    q, k, v = mixer.qkv(x[:, P:]).unflatten(-1, (3, h, d)).unbind(2)  # (B, H * W, h, d)
    for n in range(H * W):
        logits, values = [], []
        for m in range(H * W):
            (ny, nx), (my, mx) = divmod(n, W), divmod(m, W)
            same_row = (ny - down) // w == (my - down) // w
            same_column = (nx - right) // w == (mx - right) // w
            if not (same_row and same_column):
                continue
            if cosine:
                alike = torch.cosine_similarity(q[:, n], k[:, m], dim=-1)
                alike = alike * mixer.logit_scale.flatten().exp().clamp(max=100)
                bias = continuous_bias(mixer, ny - my, nx - mx)
            else:
                alike = (q[:, n] * k[:, m]).sum(-1) / d**0.5
                bias = table_bias(mixer, ny - my, nx - mx)
            logits.append(alike + bias)
            values.append(v[:, m])
        weights = torch.stack(logits, -1).softmax(-1)  # (B, h, tokens of the window)
        y = torch.einsum("bhm,mbhd->bhd", weights, torch.stack(values))
        out.append(mixer.proj(y.flatten(1)))
    return torch.stack(out, dim=1)


def compare(name, grid, window, depth, prefix, seed, shifted=None):
    torch.manual_seed(seed)
    mixer = build(name, grid, depth, prefix, window=window)
    shifted = depth % 2 == 1 if shifted is None else shifted
    x = torch.randn(2, prefix + grid[0] * grid[1], 6, dtype=torch.float64, requires_grad=True)
    target, results = torch.randn_like(x), []
    for forward in (mixer, lambda x: naive(mixer, x, shifted, name == "window_cosine")):
        mixer.zero_grad()
        x.grad = None
        y = forward(x)
        (y * target).sum().backward()
        # The naive sum does not touch positions that never meet.
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in mixer.parameters()]
        results.append([y.detach(), x.grad.clone(), *(g.clone() for g in grads)])
    for fast, slow in zip(*results, strict=True):
        # timm makes Swin V2's table of logarithms in float32, whatever the module's dtype.
        torch.testing.assert_close(fast, slow, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=12, deadline=None)
@given(
    grid=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    window=st.integers(1, 4),
    depth=st.integers(0, 1),
    prefix=st.integers(0, 2),
    seed=st.integers(0, 2**16),
)
def test_is_the_sum_over_the_window(name, grid, window, depth, prefix, seed):
    compare(name, grid, window, depth, prefix, seed)


@pytest.mark.parametrize("name", NAMES)
def test_the_twin_tells_shifted_from_plain_windows(name):
    with pytest.raises(AssertionError):
        compare(name, (5, 7), 3, 1, 0, 0, shifted=False)


def timms_block(name, grid, window, shift):
    cls = {"window": SwinTransformerBlock, "window_cosine": SwinTransformerV2Block}[name]
    return cls(6, grid, num_heads=2, window_size=window, shift_size=shift).double().eval()


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("name", NAMES)
def test_is_timms_on_whole_windows(name, depth):
    grid, window = (4, 8), 4
    block = timms_block(name, grid, window, (window // 2) * depth)
    mixer = build(name, grid, depth, window=window, qkv_bias=name == "window")
    block.attn.load_state_dict(mixer.state_dict(), strict=name == "window")
    x = torch.randn(2, 32, 6, dtype=torch.float64)
    # Rows fit into one window: neither shifts them.
    theirs = block._attn(x.reshape(2, *grid, 6)).flatten(1, 2)
    torch.testing.assert_close(mixer(x), theirs)


@pytest.mark.parametrize("name", NAMES)
def test_what_stands_in_the_padding_is_not_seen(name):
    """A token whose window is mostly padding attends to itself alone."""
    mixer = build(name, (4, 4), depth=0)
    x = torch.randn(1, 16, 6, dtype=torch.float64)
    changed = x.clone()
    changed[:, :-1] += 1
    torch.testing.assert_close(mixer(changed)[:, -1], mixer(x)[:, -1])
    assert not torch.allclose(mixer(changed)[:, :-1], mixer(x)[:, :-1])


def test_no_row_of_the_mask_is_empty():
    mask = window_mask((4, 5), 3, (1, 1))
    assert mask.shape == (4, 9, 9)
    assert (mask == 0).any(-1).all()
    assert mask.isinf().any()


@pytest.mark.parametrize("name", NAMES)
def test_the_parameters_do_not_depend_on_the_grid(name):
    mixer, other = build(name, (2, 3)), build(name, (7, 5))
    other.load_state_dict(mixer.state_dict())
    mixer.set_grid_size((7, 5))
    x = torch.randn(1, 35, 6, dtype=torch.float64)
    assert torch.equal(mixer(x), other(x))
    with pytest.raises(ValueError, match="grid_size"):
        create_attention(name, 6, num_heads=2)
    with pytest.raises(ValueError, match="window_size"):
        create_attention(name, 6, num_heads=2, grid_size=(4, 4), window_size=0)


def test_temperatures_stay_below_their_bound():
    mixer = build("window_cosine", (3, 3))
    x = torch.randn(1, 9, 6, dtype=torch.float64)
    with torch.no_grad():
        mixer.logit_scale.fill_(math.log(100.0))
        bounded = mixer(x)
        mixer.logit_scale.fill_(50.0)
    assert torch.equal(mixer(x), bounded)
