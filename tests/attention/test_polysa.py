"""Poly-SA against its formula, spelled out token by token; resampling; cost; foreign weights."""

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import efficient_vits
from efficient_vits.attention import create_attention


def build(heads=2, head_dim=4, grid=(2, 3), prefix=1, **arguments):
    return create_attention(
        "polysa",
        heads * head_dim,
        num_heads=heads,
        grid_size=grid,
        num_prefix_tokens=prefix,
        **arguments,
    )


def naive(mixer, x, is_causal=False):
    """Token by token, head by head."""
    images = []
    for tokens in x:
        heads = []
        q, k, v = (part.chunk(mixer.num_heads, -1) for part in mixer.qkv(tokens).chunk(3, -1))
        for h in range(mixer.num_heads):
            rows = []
            for n in range(len(tokens)):
                seen = n + 1 if is_causal else len(tokens)
                keys, queries = mixer.k_norm(k[h]), mixer.q_norm(q[h])
                pooled = sum(mixer.weights_in[h, m] * keys[m] * v[h][m] for m in range(seen))
                rows.append(queries[n] * mixer.weights_out[h, n] * mixer.pool_norm(pooled))
            heads.append(torch.stack(rows))
        images.append(mixer.proj(torch.cat(heads, dim=-1)))
    return torch.stack(images)


def results(forward, mixer, x, target):
    mixer.zero_grad()
    x.grad = None
    y = forward(x)
    (y * target).sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in mixer.parameters())]


def compare(twin, heads, head_dim, grid, prefix, seed, is_causal=False, **arguments):
    torch.manual_seed(seed)
    call = {"is_causal": True} if is_causal else {}
    mixer = build(heads, head_dim, grid, prefix, **arguments).double()
    torch.nn.init.normal_(mixer.pool_norm.weight)
    N = prefix + grid[0] * grid[1]
    x = torch.randn(2, N, heads * head_dim, dtype=torch.float64, requires_grad=True)
    target = torch.randn_like(x)
    fast = results(lambda x: mixer(x, **call), mixer, x, target)
    slow = results(lambda x: twin(mixer, x, **call), mixer, x, target)
    for ours, plain in zip(fast, slow, strict=True):
        torch.testing.assert_close(ours, plain)  # float64: rounding alone


@settings(max_examples=15, deadline=None)
@given(
    heads=st.integers(1, 3),
    head_dim=st.integers(2, 5),
    grid=st.tuples(st.integers(1, 4), st.integers(1, 3)),
    prefix=st.integers(0, 3),
    is_causal=st.booleans(),
    seed=st.integers(0, 99),
)
def test_equals_its_naive_twin(heads, head_dim, grid, prefix, is_causal, seed):
    compare(naive, heads, head_dim, grid, prefix, seed, is_causal=is_causal)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda mixer, x: naive(mixer, x) + 1e-4 * x,
        lambda mixer, x: naive(mixer, x, is_causal=True),
        lambda mixer, x: naive(mixer, x.flip(1)).flip(1),  # tokens are told apart
    ],
)
def test_a_wrong_twin_is_noticed(wrong):
    with pytest.raises(AssertionError, match="not close"):
        compare(wrong, 2, 5, (2, 3), 1, 0)


def test_is_of_third_order_but_for_the_norm():
    """Without biases and norm, twice the input is eight times the output."""
    mixer = build(qkv_bias=False, proj_bias=False).double()
    mixer.pool_norm = torch.nn.Identity()
    x = torch.randn(2, 7, 8, dtype=torch.float64)
    torch.testing.assert_close(mixer(2 * x), 8 * mixer(x))


def test_equals_its_naive_twin_with_norms_of_queries_and_keys():
    compare(naive, 2, 5, (2, 3), 1, 0, qk_norm=True, norm_layer=torch.nn.LayerNorm)


def test_another_grid_interpolates_patches_and_keeps_prefix_tokens():
    mixer = build(grid=(2, 3), prefix=2)
    row, column = torch.meshgrid(torch.arange(2.0), torch.arange(3.0), indexing="ij")
    with torch.no_grad():
        mixer.weights_out[:, 2:] = column.flatten()  # constant from top to bottom
        mixer.weights_in[:, 2:] = row.flatten() + 1
    before = {k: v.clone() for k, v in mixer.state_dict().items()}
    mixer.set_grid_size((5, 3))
    for name in ("weights_in", "weights_out"):
        assert torch.equal(getattr(mixer, name)[:, :2], before[name][:, :2])
    columns = mixer.weights_out[0, 2:].reshape(5, 3)
    torch.testing.assert_close(columns, torch.arange(3.0).expand(5, 3))
    rows = mixer.weights_in[0, 2:].reshape(5, 3)
    assert (rows.diff(dim=0) >= 0).all()
    torch.testing.assert_close(rows.sum(), torch.tensor(9.0))  # 1 + 1 + 1 + 2 + 2 + 2, as before


def test_weights_of_another_resolution_and_of_the_benchmark_load():
    arguments = {"depth": 2, "num_classes": 5}
    small = timm.create_model("polysa_ti16", img_size=64, **arguments)
    large = timm.create_model("polysa_ti16", img_size=96, **arguments)
    ours = small.state_dict()
    names = {"weights_out": "p1", "weights_in": "p2", "pool_norm": "norm"}
    theirs = {}
    for name, value in ours.items():
        for our, their in names.items():
            name = name.replace(f"attn.{our}", f"attn.{their}")
        theirs[name] = value
    loaded = efficient_vits.load_weights(large, theirs)
    assert loaded.layout == "benchmark reference"
    assert {n.split(".")[-1] for n in loaded.resampled} == {
        "pos_embed",
        "weights_in",
        "weights_out",
    }
    small.set_input_size((96, 96))
    for name, value in small.state_dict().items():
        assert torch.equal(large.state_dict()[name], value), name


def test_a_value_that_fits_no_square_grid_is_left_alone():
    mixer = build(grid=(2, 2), prefix=1)
    for shape in [(2, 4), (2, 1), (2, 0), (2,), (2, 10, 1)]:
        value = torch.randn(shape)
        assert mixer.resample_parameter("weights_in", value) is value
    value = torch.randn(2, 10)
    assert mixer.resample_parameter("qkv.weight", value) is value
    assert mixer.resample_parameter("weights_in", value).shape == (2, 5)


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operator makes."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = out if isinstance(out, tuple | list) else [out]
        self.numel = max([self.numel, *(t.numel() for t in made if isinstance(t, torch.Tensor))])
        return out


def largest(forward, x):
    with Largest() as mode, torch.no_grad():
        forward(x)
    return mode.numel


def test_nothing_grows_faster_than_the_number_of_tokens():
    x = torch.randn(1, 1025, 8)
    mixer = build(grid=(32, 32))
    assert largest(mixer, x) == 3 * x.numel()  # queries, keys and values
    softmax = create_attention("softmax", 8, num_heads=2)
    softmax.fused_attn = False
    assert largest(softmax, x) > 100 * x.numel()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_products_that_leave_the_range_of_float16_are_held(dtype):
    mixer = build(grid=(3, 5)).train()
    with torch.no_grad():
        mixer.weights_in.fill_(1.0)
    x = (1000 * torch.randn(2, 16, 8)).requires_grad_()
    with torch.autocast("cpu", dtype):
        k = F.linear(x, mixer.qkv.weight[8:16])
        assert k.dtype == dtype
        y = mixer(x)
    if dtype == torch.float16:
        assert not (k * k).isfinite().all()
    y.float().sum().backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()
