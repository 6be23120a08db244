"""Performer against its formula, and its random features against what they must be on average."""

import pytest
import timm
import torch
from einops import einsum, rearrange
from hypothesis import given, settings
from hypothesis import strategies as st

import efficient_vits
from efficient_vits.attention import create_attention
from efficient_vits.attention.performer import orthogonal_gaussian, random_features
from efficient_vits.weights import WeightsError


def naive_features(x, projection, kernel, is_query):
    m, d = projection.shape
    x = x / d**0.25
    dots = einsum(x, projection, "b h n d, m d -> b h n m")
    if kernel == "relu":
        return dots.relu() + 1e-3
    stabiliser = dots.amax(-1, keepdim=True) if is_query else dots.amax((2, 3), keepdim=True)
    half_square = x.pow(2).sum(-1, keepdim=True) / 2
    return m**-0.5 * ((dots - half_square - stabiliser).exp() + 1e-4)


def naive(mixer, x, size=None):
    """All N x N weights."""
    q, k, v = rearrange(mixer.qkv(x), "b n (s h d) -> s b h n d", s=3, h=mixer.num_heads)
    q = naive_features(q, mixer.projection, mixer.kernel, True)
    k = naive_features(k, mixer.projection, mixer.kernel, False)
    weights = einsum(q, k, "b h n m, b h l m -> b h n l")
    if size is not None:
        weights = weights * rearrange(size, "b l 1 -> b 1 1 l")
    weights = weights / weights.sum(-1, keepdim=True)
    return mixer.proj(rearrange(weights @ v, "b h n d -> b n (h d)"))


def compare(twin, heads, head_dim, tokens, seed, features=9, kernel="softmax", sized=False):
    torch.manual_seed(seed)
    mixer = create_attention(
        "performer", heads * head_dim, num_heads=heads, random_features=features, kernel=kernel
    ).double()
    x = torch.randn(2, tokens, heads * head_dim, dtype=torch.float64, requires_grad=True)
    size = torch.randint(1, 9, (2, tokens, 1)).double() if sized else None
    target = torch.randn_like(x)
    results = []
    for forward in (mixer, lambda *args, **call: twin(mixer, *args, **call)):
        mixer.zero_grad()
        x.grad = None
        y = forward(x, size=size)
        (y * target).sum().backward()
        results.append([y.detach(), x.grad, *(p.grad for p in mixer.parameters())])
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow)  # float64: rounding alone


@settings(max_examples=30, deadline=None)
@given(
    heads=st.integers(1, 3),
    head_dim=st.integers(1, 7),
    tokens=st.integers(1, 40),
    seed=st.integers(0, 99),
    features=st.integers(1, 20),
    kernel=st.sampled_from(["softmax", "relu"]),
    sized=st.booleans(),
)
def test_equals_its_naive_twin(heads, head_dim, tokens, seed, features, kernel, sized):
    compare(naive, heads, head_dim, tokens, seed, features, kernel, sized)


def test_a_wrong_twin_is_noticed():
    with pytest.raises(AssertionError, match="not close"):
        compare(lambda mixer, x, **call: naive(mixer, x, **call) + 1e-4 * x, 2, 5, 7, 0)

    def other_kernel(mixer, x, size):
        mixer.kernel = "softmax"
        return naive(mixer, x, size)

    with pytest.raises(AssertionError, match="not close"):
        compare(other_kernel, 2, 5, 7, 0, kernel="relu")


@pytest.mark.parametrize(("rows", "columns"), [(8, 4), (10, 4), (3, 5)])
def test_random_features_are_orthogonal_block_by_block(rows, columns):
    projection = orthogonal_gaussian(rows, columns)
    assert projection.shape == (rows, columns)
    for block in projection.split(columns):
        gram = block @ block.t()
        torch.testing.assert_close(gram, torch.diag(gram.diagonal()), atol=1e-5, rtol=0)


def test_random_features_are_gaussian_row_by_row():
    draws = torch.stack([orthogonal_gaussian(6, 4) for _ in range(2000)])
    # Of 2000 draws, a mean has an error of 0.02 and a second moment one of 0.03; a row that is
    # turned to one side, as the first of a plain QR decomposition, is 0.7 off.
    torch.testing.assert_close(draws.mean(0), torch.zeros(6, 4), atol=0.12, rtol=0)
    moments = einsum(draws, draws, "s m i, s m j -> m i j") / 2000
    torch.testing.assert_close(moments, torch.eye(4).expand(6, 4, 4), atol=0.2, rtol=0)


def test_the_features_products_are_the_softmax_kernel_on_average():
    """Lemma 1 of the paper, with the stabilisers taken out again."""
    q, k = torch.randn(2, 1, 1, 1, 4, dtype=torch.float64) * 0.7
    estimates = []
    for _ in range(1000):
        W = orthogonal_gaussian(4, 4).double()
        # The eps that the features carry is left out.
        fq, fk = (random_features(z, W, "softmax", True) - 1e-4 for z in (q, k))
        shift = sum((z @ W.t() / 4**0.25).amax() for z in (q, k))
        estimates.append((fq * fk).mean() * shift.exp())
    estimates = torch.stack(estimates)
    exact = ((q * k).sum() / 2).exp()
    error = estimates.std() / 1000**0.5
    assert error < 0.05 * exact
    assert (estimates.mean() - exact).abs() < 4 * error


def test_approaches_softmax_attention_as_features_get_more():
    softmax = create_attention("softmax", 16, num_heads=2).double()
    # Small, so that eps is small beside all features; what it adds does not fall.
    x = 0.5 * torch.randn(2, 11, 16, dtype=torch.float64)
    exact = softmax(x).detach()

    def error(features):
        squares = []
        for _ in range(8):
            mixer = create_attention("performer", 16, num_heads=2, random_features=features)
            mixer.load_state_dict({**softmax.state_dict(), "projection": mixer.projection})
            squares.append((mixer.double()(x).detach() - exact).square().sum())
        return float((sum(squares) / 8 / exact.square().sum()).sqrt())

    few, some, many = error(8), error(128), error(2048)
    # 1 / sqrt(16) each, over 8 draws
    assert 2.5 < few / some < 6
    assert 2.5 < some / many < 6


def test_the_stabiliser_keeps_the_exponential_finite():
    W = orthogonal_gaussian(16, 4)
    # The rows of W themselves reach the bound exp(|w|^2 / 2).
    x = (12 * W * 4**0.25 / W.norm(dim=1, keepdim=True)).reshape(1, 1, 16, 4)
    W = 12 * W / W.norm(dim=1, keepdim=True)
    for is_query in (True, False):
        features = random_features(x, W, "softmax", is_query)
        assert features.isfinite().all()
        assert (features >= 1e-4).all()
        assert (features <= 1.0002).all()
    assert not (x @ W.t()).exp().isfinite().all()


def test_features_are_computed_in_float32_under_autocast():
    x, W = 3 * torch.randn(1, 2, 9, 16), orthogonal_gaussian(32, 16)
    x = x.bfloat16()
    expected = random_features(x.float(), W, "softmax", False)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(random_features(x, W, "softmax", False), expected)


def test_redrawing_changes_the_features_and_repeats_with_a_generator():
    mixer = create_attention("performer", 16, num_heads=2).eval()
    x = torch.randn(2, 7, 16)
    before = mixer(x)
    assert torch.equal(mixer(x), before)
    pointer = mixer.projection.data_ptr()
    mixer.redraw(torch.Generator().manual_seed(3))
    first = mixer.projection.clone()
    assert not torch.allclose(mixer(x), before)
    mixer.redraw()
    assert not torch.equal(mixer.projection, first)
    mixer.redraw(torch.Generator().manual_seed(3))
    assert torch.equal(mixer.projection, first)
    assert mixer.projection.data_ptr() == pointer  # in place, as graphs and optimisers want it


def test_what_does_not_work_is_refused():
    with pytest.raises(ValueError, match="'cosine'"):
        create_attention("performer", 16, kernel="cosine")
    with pytest.raises(ValueError, match="random_features >= 1, got 0"):
        create_attention("performer", 16, random_features=0)


SMALL = {"img_size": 64, "depth": 2, "num_classes": 5, "init_values": 1.0}


def small(**arguments):
    return timm.create_model("performer_ti16", **SMALL, **arguments).eval()


def test_the_projection_is_saved_and_loaded():
    source, model, x = small(), small(), torch.randn(2, 3, 64, 64)
    assert not torch.allclose(source(x), model(x))
    efficient_vits.load_weights(model, source.state_dict())
    assert torch.equal(source(x), model(x))
    lacking = {k: v for k, v in source.state_dict().items() if k != "blocks.1.attn.projection"}
    with pytest.raises(WeightsError, match="projection"):
        efficient_vits.load_weights(model, lacking)


def test_names_of_the_benchmark_become_ours():
    source, model = small(), small()
    theirs = {}
    for name, value in source.state_dict().items():
        name = name.replace("attn.proj.", "attn.to_out.")
        name = name.replace("attn.projection", "attn.fast_attention.projection_matrix")
        if ".qkv." in name:
            for part, rows in zip("qkv", value.chunk(3), strict=True):
                theirs[name.replace("qkv", f"to_{part}")] = rows
        else:
            theirs[name] = value
    assert efficient_vits.load_weights(model, theirs).layout == "benchmark reference"
    for name, value in model.state_dict().items():
        assert torch.equal(value, source.state_dict()[name]), name
    for name in theirs:
        if name.startswith("blocks.1.attn."):
            with pytest.raises(WeightsError, match="do not fit"):
                efficient_vits.load_weights(model, {n: theirs[n] for n in theirs if n != name})


def test_from_the_meta_device_the_projection_is_drawn():
    model = small(device="meta").to_empty(device="cpu")
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.fill_(float("nan"))
    model.init_weights()
    for block in model.blocks:
        assert block.attn.projection.isfinite().all()
    assert not torch.equal(model.blocks[0].attn.projection, model.blocks[1].attn.projection)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_relu_kernel_stays_finite_in_half_precision(dtype):
    mixer = create_attention("performer", 32, num_heads=4, kernel="relu").train()
    for x in (30 * torch.randn(2, 9, 32), torch.zeros(2, 9, 32), torch.ones(2, 1, 32)):
        x.requires_grad_()
        with torch.autocast("cpu", dtype):
            y = mixer(x)
        y.float().sum().backward()
        assert y.isfinite().all()
        assert x.grad.isfinite().all()


def test_the_relu_kernel_scripts_and_has_the_gradients_of_finite_differences():
    mixer = create_attention("performer", 8, num_heads=2, kernel="relu").eval()
    x = torch.randn(1, 5, 8)
    torch.testing.assert_close(torch.jit.script(mixer)(x), mixer(x))
    assert torch.autograd.gradcheck(mixer.double(), (x.double().requires_grad_(),))
