"""SLAB against its formula, and its norms: the schedule, and what is left of them for inference."""

import pytest
import timm
import torch
from einops import einsum, rearrange
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import efficient_vits
from efficient_vits import load_weights
from efficient_vits.attention import create_attention
from efficient_vits.attention.slab import ProgressiveRepBN, set_progress
from efficient_vits.efficiency import count_flops

SMALL = {"img_size": 64, "depth": 2, "init_values": 1.0, "num_classes": 7}


def naive_slab(mixer, x):
    """The N x N attention matrix that SLAB avoids, and the convolution as a sum over neighbours."""
    P, (H, W) = mixer.num_prefix_tokens, mixer.grid_size
    q, k, v = rearrange(mixer.qkv(x), "b n (s h d) -> s b h n d", s=3, h=mixer.num_heads)
    position = rearrange(mixer.positional_encoding, "1 n (h d) -> 1 h n d", h=mixer.num_heads)
    k = torch.cat([k[:, :, :P], k[:, :, P:] + position], dim=2)
    weights = einsum(q.relu(), k.relu(), "b h n d, b h m d -> b h n m")
    y = (weights / (weights.sum(-1, keepdim=True) + 1e-6)) @ v
    filters, reach = mixer.dwc.weight, mixer.dwc.kernel_size[0] // 2
    rows = []
    for n in range(H * W):
        row = mixer.dwc.bias.expand(v.shape[0], v.shape[1], -1)
        for m in range(H * W):
            i, j = m // W - n // W + reach, m % W - n % W + reach
            if 0 <= i <= 2 * reach and 0 <= j <= 2 * reach:
                row = row + filters[:, 0, i, j] * v[:, :, P + m]
        rows.append(row)
    y = torch.cat([y[:, :, :P], y[:, :, P:] + torch.stack(rows, dim=2)], dim=2)
    return mixer.proj(rearrange(y, "b h n d -> b n (h d)"))


def compare(naive, heads, head_dim, grid, prefix, kernel_size, seed):
    torch.manual_seed(seed)
    dim = heads * head_dim
    mixer = create_attention(
        "slab",
        dim,
        num_heads=heads,
        grid_size=grid,
        num_prefix_tokens=prefix,
        kernel_size=kernel_size,
    ).double()
    nn.init.normal_(mixer.positional_encoding)
    x = torch.randn(2, prefix + grid[0] * grid[1], dim, dtype=torch.float64, requires_grad=True)
    target = torch.randn_like(x)
    results = []
    for forward in (mixer, lambda x: naive(mixer, x)):
        mixer.zero_grad()
        x.grad = None
        y = forward(x)
        (y * target).sum().backward()
        results.append([y.detach(), x.grad, *(p.grad for p in mixer.parameters())])
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow)  # float64: rounding alone


@settings(max_examples=20, deadline=None)
@given(
    heads=st.integers(1, 3),
    head_dim=st.integers(1, 7),
    grid=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    prefix=st.sampled_from([0, 1, 2, 5]),
    kernel_size=st.sampled_from([1, 3, 5]),
    seed=st.integers(0, 99),
)
def test_equals_its_naive_twin(heads, head_dim, grid, prefix, kernel_size, seed):
    compare(naive_slab, heads, head_dim, grid, prefix, kernel_size, seed)


def test_a_wrong_twin_is_noticed():
    with pytest.raises(AssertionError, match="not close"):
        compare(lambda mixer, x: naive_slab(mixer, x) + 1e-4 * x, 2, 5, (2, 3), 1, 3, 0)


def test_a_query_without_positive_part_gets_nothing_from_the_sum():
    mixer = create_attention("slab", 8, num_heads=2, grid_size=(2, 3), num_prefix_tokens=1)
    with torch.no_grad():
        mixer.qkv.weight[:8] = 0
        mixer.qkv.bias[:8] = -1
    y = mixer(torch.randn(2, 7, 8))
    assert torch.equal(y[:, 0], mixer.proj.bias.expand(2, -1))
    assert y.isfinite().all()


@pytest.mark.parametrize("kernel_size", [0, 2, -1])
def test_an_even_kernel_is_refused(kernel_size):
    with pytest.raises(ValueError, match="odd kernel_size"):
        create_attention("slab", 8, num_heads=2, grid_size=(2, 3), kernel_size=kernel_size)


def test_positions_follow_the_grid_over_rows_and_columns():
    mixer = create_attention("slab", 8, num_heads=2, grid_size=(4, 4), num_prefix_tokens=2)
    rows = torch.arange(4.0).repeat_interleave(4)
    with torch.no_grad():
        mixer.positional_encoding.copy_(rows[None, :, None].expand(1, 16, 8))
    square = mixer.positional_encoding.detach().clone()
    mixer.set_grid_size((4, 7))
    wide = mixer.positional_encoding.detach().reshape(4, 7, 8)
    # Interpolation in float32; along the columns nothing changes.
    torch.testing.assert_close(wide, torch.arange(4.0)[:, None, None].expand(4, 7, 8))
    loaded = mixer.resample_parameter("positional_encoding", square)
    torch.testing.assert_close(loaded, mixer.positional_encoding.detach())


# --- The norms ---


def trained(model, steps=3):
    """Norms away from their initial values, statistics included; in evaluation mode."""
    torch.manual_seed(0)
    for name, p in model.named_parameters():
        if ".ln." in name or ".bn." in name or "alpha" in name:
            nn.init.normal_(p, mean=1, std=0.3)
    with torch.no_grad():
        for _ in range(steps):
            model.train()(torch.randn(4, 3, 64, 64))
    return model.eval()


def naive_norm(norm, x, gamma):
    flat = x.reshape(-1, x.shape[-1])
    mean, var = flat.mean(0), flat.var(0, unbiased=False)
    bn = (x - mean) / (var + norm.repbn.bn.eps).sqrt() * norm.repbn.bn.weight + norm.repbn.bn.bias
    mean, var = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
    ln = (x - mean) / (var + norm.ln.eps).sqrt() * norm.ln.weight + norm.ln.bias
    return gamma * ln + (1 - gamma) * (bn + norm.repbn.alpha * x)


@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("shape", [(5, 6), (3, 5, 6), (2, 3, 4, 6)])
def test_the_norm_goes_from_layer_to_batch_norm(shape, progress):
    torch.manual_seed(0)
    norm = ProgressiveRepBN(6).double()
    for p in norm.parameters():
        nn.init.normal_(p)
    set_progress(norm, progress)
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(norm(x), naive_norm(norm, x, 1 - progress))
    # In evaluation it is affine, whatever the progress is.
    scale, shift = norm.eval().affine()
    torch.testing.assert_close(norm(x), scale * x + shift)
    with pytest.raises(AssertionError, match="not close"):
        torch.testing.assert_close(norm(x), scale * x + shift + 1e-4)


def test_progress_reaches_every_norm_and_is_saved():
    model = timm.create_model("slab_ti16", **SMALL)
    norms = [m for m in model.modules() if isinstance(m, ProgressiveRepBN)]
    assert len(norms) == 5  # two per block and the last one
    assert {float(norm.progress) for norm in norms} == {1.0}, "without a schedule it is RepBN"
    set_progress(model, 0.25)
    assert {float(norm.progress) for norm in norms} == {0.25}
    other = timm.create_model("slab_ti16", **SMALL)
    other.load_state_dict(model.state_dict())
    assert float(other.norm.progress) == 0.25
    # Weights that come without it leave it as it is.
    state = {k: v for k, v in model.state_dict().items() if not k.endswith("progress")}
    assert "norm.progress" in load_weights(other, state).absent


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_progress_beyond_its_range_is_refused(fraction):
    with pytest.raises(ValueError, match="from 0 to 1"):
        set_progress(ProgressiveRepBN(4), fraction)


def test_a_model_without_progressive_norms_is_refused():
    with pytest.raises(ValueError, match="no progressive norms"):
        set_progress(nn.LayerNorm(4), 0.5)


def test_the_steps_that_the_benchmarks_code_counts_become_progress():
    counters = {"warm": torch.tensor(0), "iter": torch.tensor(15), "total_step": torch.tensor(60)}
    assert ProgressiveRepBN.from_reference(counters)["progress"] == 0.75
    waiting = {**counters, "warm": torch.tensor(3)}
    assert ProgressiveRepBN.from_reference(waiting)["progress"] == 0
    assert ProgressiveRepBN.from_reference({}) == {}


@pytest.mark.parametrize("own", [{}, {"qkv_bias": False}, {"attention": "softmax"}])
def test_fused_norms_leave_the_outputs_equal(own):
    model = trained(timm.create_model("slab_ti16", **SMALL, **own)).double()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    fused, x = efficient_vits.fuse(model), torch.randn(2, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(fused(x), model(x))  # float64: rounding alone
    torch.testing.assert_close(fused.forward_features(x), model.forward_features(x))
    assert not any(isinstance(m, ProgressiveRepBN | nn.BatchNorm1d) for m in fused.modules())
    assert isinstance(fused.blocks[0].norm1, nn.Identity)
    assert isinstance(fused.blocks[0].norm2, nn.Identity)
    assert fused.blocks[0].attn.qkv.bias is not None
    # The model itself is as it was.
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    counted = [count_flops(m.float(), (3, 64, 64)).total for m in (fused, model)]
    assert counted[0] < counted[1]
    torch.jit.script(fused)


def test_what_no_linear_layer_takes_in_stays_a_scale_and_a_shift():
    """Hydra does not say that all of its input goes to one layer; LayerNorms are no affine maps."""
    model = trained(timm.create_model("slab_ti16", attention="hydra", **SMALL)).double()
    fused, x = efficient_vits.fuse(model), torch.randn(2, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(fused(x), model(x))
    assert not isinstance(fused.blocks[0].norm1, nn.Identity | ProgressiveRepBN)
    plain = timm.create_model("vit_ti16", **SMALL).eval()
    assert isinstance(efficient_vits.fuse(plain).blocks[0].norm1, nn.LayerNorm)


def test_fusing_the_wrong_layer_would_be_noticed():
    model = trained(timm.create_model("slab_ti16", **SMALL)).double()
    fused, x = efficient_vits.fuse(model), torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        fused.blocks[1].mlp.fc1.bias += 1e-3
    with pytest.raises(AssertionError, match="not close"):
        torch.testing.assert_close(fused(x), model(x))
