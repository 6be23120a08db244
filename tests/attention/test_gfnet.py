"""GFNet's filter against the convolution that it is; its resampling and its block."""

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import efficient_vits
from efficient_vits.attention import create_attention


def kernel(weight, width):
    """The real kernel (H, W, C) of a filter (H, V, C, 2), as a sum over the whole spectrum."""
    H, _, C, _ = weight.shape
    half = torch.complex(weight[..., 0], weight[..., 1])
    out = torch.zeros(H, width, C, dtype=torch.float64)
    for h in range(H):
        for v in range(width):
            k = half[h, v] if v < half.shape[1] else half[-h % H, width - v].conj()
            rows = torch.exp(2j * torch.pi * h * torch.arange(H).double() / H)
            columns = torch.exp(2j * torch.pi * v * torch.arange(width).double() / width)
            wave = torch.outer(rows, columns)
            out = out + (wave.unsqueeze(-1) * k).real / (H * width)
    return out


def naive_gfnet(mixer, x):
    """Circular convolution, token by token."""
    H, W = mixer.grid_size
    P = mixer.num_prefix_tokens
    k = kernel(mixer.complex_weight, W)
    y = []
    for n in range(H * W):
        shifts = [((n // W - m // W) % H, (n % W - m % W) % W) for m in range(H * W)]
        y.append(sum(k[a, b] * x[:, P + m] for m, (a, b) in enumerate(shifts)))
    return torch.cat([x[:, :P], torch.stack(y, dim=1)], dim=1)


def build(grid=(3, 5), prefix=0, dim=4):
    mixer = create_attention("gfnet", dim, grid_size=grid, num_prefix_tokens=prefix).double()
    with torch.no_grad():
        mixer.complex_weight.normal_()
    return mixer.eval()


def tokens(grid=(3, 5), prefix=0, dim=4):
    return torch.randn(2, prefix + grid[0] * grid[1], dim, dtype=torch.float64)


def compare(twin, grid, prefix, dim, seed):
    torch.manual_seed(seed)
    mixer, x = build(grid, prefix, dim), tokens(grid, prefix, dim).requires_grad_()
    target, results = torch.randn_like(x), []
    for forward in (mixer, lambda x: twin(mixer, x)):
        mixer.zero_grad()
        x.grad = None
        y = forward(x)
        (y * target).sum().backward()
        results.append([y.detach(), x.grad, mixer.complex_weight.grad])
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow)  # float64: rounding alone


@settings(max_examples=20, deadline=None)
@given(
    grid=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    prefix=st.integers(0, 2),
    dim=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_equals_its_naive_twin(grid, prefix, dim, seed):
    compare(naive_gfnet, grid, prefix, dim, seed)


def test_a_wrong_twin_is_noticed():
    with pytest.raises(AssertionError, match="not close"):
        compare(lambda mixer, x: naive_gfnet(mixer, x) + 1e-4 * x, (3, 4), 1, 2, 0)


def tiled(x, grid):
    """(B, H * W, C) twice in each direction."""
    return x.unflatten(1, grid).repeat(1, 2, 2, 1).flatten(1, 2)


@pytest.mark.parametrize("grid", [(3, 5), (4, 4), (2, 7), (1, 1)])
def test_a_tiled_image_is_filtered_as_its_tile(grid):
    mixer, x = build(grid), tokens(grid)
    expected = tiled(mixer(x), grid)
    mixer.set_grid_size((2 * grid[0], 2 * grid[1]))
    torch.testing.assert_close(mixer(tiled(x, grid)), expected)


@pytest.mark.parametrize("grid", [(4, 6), (7, 4), (2, 3), (14, 1)])
def test_what_changes_nothing_changes_nothing_on_another_grid(grid):
    mixer = build((5, 5))
    with torch.no_grad():
        mixer.complex_weight.copy_(torch.tensor([1.0, 0.0]))
    mixer.set_grid_size(grid)
    x = tokens(grid)
    torch.testing.assert_close(mixer(x), x)


def test_a_frequency_in_between_gets_the_mean_of_its_neighbours():
    """After the last row, the frequency -1, comes the first again."""
    mixer = build((3, 4))
    old = mixer.complex_weight.detach().clone()
    mixer.set_grid_size((6, 8))
    new = mixer.complex_weight.detach()
    torch.testing.assert_close(new[1, 1], old[:2, :2].mean(dim=(0, 1)))
    torch.testing.assert_close(new[5, 0], (old[2, 0] + old[0, 0]) / 2)


def test_there_and_back_is_the_same_filter():
    mixer = build((3, 6))
    before = mixer.complex_weight.detach().clone()
    mixer.set_grid_size((6, 12))
    mixer.set_grid_size((3, 6))
    torch.testing.assert_close(mixer.complex_weight.detach(), before)


def test_weights_of_another_resolution_are_resampled_from_square_grids_only():
    mixer, square = build((4, 6)), build((5, 5))
    theirs = square.complex_weight.detach()
    square.set_grid_size((4, 6))
    resampled = mixer.resample_parameter("complex_weight", theirs)
    assert torch.equal(resampled, square.complex_weight.detach())
    wide = build((2, 6)).complex_weight.detach()
    assert mixer.resample_parameter("complex_weight", wide) is wide
    assert mixer.resample_parameter("other", theirs) is theirs


def test_a_model_takes_weights_of_another_resolution():
    arguments = {"depth": 2, "num_classes": 3}
    small = timm.create_model("gfnet_ti16", img_size=64, **arguments)
    large = timm.create_model("gfnet_ti16", img_size=(96, 64), **arguments)
    loaded = efficient_vits.load_weights(large, small.state_dict())
    assert [name for name in loaded.resampled if "attn" in name] == [
        f"blocks.{i}.attn.complex_weight" for i in range(2)
    ]
    small.set_input_size(img_size=(96, 64))
    x = torch.randn(1, 3, 96, 64)
    torch.testing.assert_close(large.eval()(x), small.eval()(x))


@pytest.mark.parametrize(("name", "skips"), [("gfnet_ti16", 1), ("hydra_ti16", 2)])
def test_the_block_has_one_skip_connection(name, skips):
    model = timm.create_model(name, img_size=64, depth=1, init_values=0.5, drop_path_rate=0.1)
    block = model.eval().blocks[0]
    x = torch.randn(2, 16 + model.num_prefix_tokens, model.embed_dim)
    with torch.no_grad():
        mixed = block.attn(block.norm1(x))
        inner, outer = (mixed, x) if skips == 1 else (x + 0.5 * mixed, x + 0.5 * mixed)
        torch.testing.assert_close(block(x), outer + 0.5 * block.mlp(block.norm2(inner)))
    scales = [name for name, _ in block.named_parameters() if name.endswith("gamma")]
    assert scales == ["ls1.gamma", "ls2.gamma"][-skips:]


def test_comes_at_sizes_of_its_own():
    shapes = {}
    for name in timm.list_models("gfnet_*", module="efficient_vits"):
        model = timm.create_model(name, device="meta")
        shapes[name] = (model.embed_dim, len(model.blocks))
    assert shapes == {
        "gfnet_ti16": (256, 12),
        "gfnet_xs16": (384, 12),
        "gfnet_s16": (384, 19),
        "gfnet_b16": (512, 19),
    }
