"""What the three Fourier mixers share: transforms, matrix products in their place, float32."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import set_exportable

from efficient_vits.attention import create_attention
from efficient_vits.attention._fourier import from_modes, to_modes, waves

NAMES = ["afno", "fnet", "gfnet"]
DIM = 8


def build(name, grid=(3, 5), prefix=1, products=False, **arguments):
    with set_exportable(products):
        mixer = create_attention(
            name, DIM, grid_size=grid, num_prefix_tokens=prefix, **arguments
        ).eval()
    assert mixer.products is products
    with torch.no_grad():  # weights of the order of 1: at 0.02 little of the input is left
        for p in mixer.parameters():
            p.normal_(std=0.7)
    return mixer


def tokens(grid=(3, 5), prefix=1, batch=2, **factory):
    return torch.randn(batch, prefix + grid[0] * grid[1], DIM, **factory)


grids = st.tuples(st.integers(1, 9), st.integers(1, 9))


@settings(max_examples=30, deadline=None)
@given(grid=grids, seed=st.integers(0, 99))
def test_transforms_are_those_of_the_fft(grid, seed):
    torch.manual_seed(seed)
    x = torch.randn(2, *grid, 3, dtype=torch.float64)
    modes = to_modes(x, products=True)
    torch.testing.assert_close(modes, to_modes(x, products=False))
    torch.testing.assert_close(from_modes(modes, grid[1], products=True), x)
    # Modes that are those of no real image.
    modes = torch.randn_like(modes)
    torch.testing.assert_close(
        from_modes(modes, grid[1], products=True), from_modes(modes, grid[1], products=False)
    )


def test_waves_of_many_points_are_exact_in_float32():
    """An angle of a million radians would be off by a twentieth in float32."""
    n = 1031
    cos, sin = waves(n, n, torch.empty(1))
    exact_cos, exact_sin = waves(n, n, torch.empty(1, dtype=torch.float64))
    torch.testing.assert_close(cos.double(), exact_cos, atol=1e-6, rtol=0)
    torch.testing.assert_close(sin.double(), exact_sin, atol=1e-6, rtol=0)


@settings(max_examples=15, deadline=None)
@given(grid=grids, prefix=st.integers(0, 3), seed=st.integers(0, 99))
@pytest.mark.parametrize("name", NAMES)
def test_matrix_products_give_the_outputs_and_gradients_of_the_fft(name, grid, prefix, seed):
    torch.manual_seed(seed)
    fast, exported = build(name, grid, prefix).double(), build(name, grid, prefix, True).double()
    exported.load_state_dict(fast.state_dict())
    x = tokens(grid, prefix, dtype=torch.float64)
    target, results = torch.randn_like(x), []
    for mixer in (fast, exported):
        z = x.clone().requires_grad_()
        y = mixer(z)
        (y * target).sum().backward()
        results.append([y.detach(), z.grad, *(p.grad for p in mixer.parameters())])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)  # float64: rounding alone


@pytest.mark.parametrize("products", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_model_for_export_holds_no_fft(name, products):
    program = torch.export.export(build(name, products=products), (tokens(),))
    # What runs without autocast is a graph of its own inside.
    graphs = [m.graph for m in program.graph_module.modules() if hasattr(m, "graph")]
    called = {str(node.target) for graph in graphs for node in graph.nodes}
    assert any("fft" in target for target in called) != products
    if products:
        assert not any("view_as_complex" in target for target in called)


@pytest.mark.parametrize("name", NAMES)
def test_matrix_products_script_compile_and_need_no_data(name):
    mixer, x = build(name, products=True), tokens()
    expected = mixer(x)
    torch.testing.assert_close(torch.jit.script(mixer)(x), expected)
    torch._dynamo.reset()
    compiled = torch.compile(mixer, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected)
    assert mixer.to("meta")(x.to("meta")).shape == x.shape


@pytest.mark.parametrize("products", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_autocast_changes_nothing(name, products):
    mixer, x = build(name, products=products), tokens()
    expected = mixer(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(mixer(x), expected)
        assert mixer(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("products", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_works_on_grids_that_are_no_power_of_two(name, dtype, products):
    mixer, x = build(name, (7, 14), products=products), tokens((7, 14))
    mixer, x = mixer.to(dtype), x.to(dtype)
    y = mixer(x)
    assert y.dtype == dtype
    # Inside it is float32: only the last rounding differs.
    torch.testing.assert_close(y, mixer.float()(x.float()).to(dtype))


@pytest.mark.parametrize("name", ["afno", "gfnet"])
def test_prefix_tokens_pass_by(name):
    mixer, x = build(name, prefix=3), tokens(prefix=3)
    y = mixer(x)
    assert torch.equal(y[:, :3], x[:, :3])
    x[:, :3] += 1
    assert torch.equal(mixer(x)[:, 3:], y[:, 3:])


@pytest.mark.parametrize("name", ["afno", "gfnet"])
def test_the_grid_has_to_be_known_and_kept(name):
    with pytest.raises(ValueError, match="grid_size"):
        create_attention(name, DIM)
    with pytest.raises(AssertionError, match="set_grid_size"):
        build(name)(tokens((3, 6)))


@pytest.mark.parametrize("name", NAMES)
def test_dropout_of_attention_weights_is_refused_and_of_outputs_is_not(name):
    with pytest.raises(ValueError, match=r"attn_drop=0\.1"):
        build(name, attn_drop=0.1)
    mixer, x = build(name, proj_drop=0.5), tokens()
    dropped = mixer.train()(x)
    assert 0.3 < (dropped == 0).double().mean() < 0.7
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], 2 * mixer.eval()(x)[kept])
