"""Linear attention against its formula, causal and not, and where sums outgrow half precision."""

import pytest
import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from hypothesis import given, settings
from hypothesis import strategies as st

from efficient_vits.attention import create_attention
from efficient_vits.attention.linear import elu_features, kernel_attention


def naive(mixer, x, size=None, is_causal=False):
    """All N x N weights."""
    q, k, v = rearrange(mixer.qkv(x), "b n (s h d) -> s b h n d", s=3, h=mixer.num_heads)
    weights = einsum(F.elu(q) + 1, F.elu(k) + 1, "b h n d, b h m d -> b h n m")
    if size is not None:
        weights = weights * rearrange(size, "b m 1 -> b 1 1 m")
    if is_causal:
        weights = weights.tril()
    weights = weights / (weights.sum(-1, keepdim=True) + 1e-6)
    return mixer.proj(rearrange(weights @ v, "b h n d -> b n (h d)"))


def compare(twin, heads, head_dim, tokens, seed, sized=False, is_causal=False):
    torch.manual_seed(seed)
    mixer = create_attention("linear", heads * head_dim, num_heads=heads).double()
    x = torch.randn(2, tokens, heads * head_dim, dtype=torch.float64, requires_grad=True)
    size = torch.randint(1, 9, (2, tokens, 1)).double() if sized else None
    target = torch.randn_like(x)
    results = []
    for forward in (mixer, lambda *args, **call: twin(mixer, *args, **call)):
        mixer.zero_grad()
        x.grad = None
        y = forward(x, size=size, is_causal=is_causal)
        (y * target).sum().backward()
        results.append([y.detach(), x.grad, *(p.grad for p in mixer.parameters())])
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow)  # float64: rounding alone


@settings(max_examples=30, deadline=None)
@given(
    heads=st.integers(1, 3),
    head_dim=st.integers(1, 7),
    tokens=st.integers(1, 150),
    seed=st.integers(0, 99),
    sized=st.booleans(),
    is_causal=st.booleans(),
)
def test_equals_its_naive_twin(heads, head_dim, tokens, seed, sized, is_causal):
    compare(naive, heads, head_dim, tokens, seed, sized, is_causal)


@pytest.mark.parametrize("tokens", [1, 63, 64, 65, 128, 129])
def test_is_causal_across_the_borders_of_chunks(tokens):
    compare(naive, 2, 3, tokens, 0, is_causal=True)


def test_a_wrong_twin_is_noticed():
    with pytest.raises(AssertionError, match="not close"):
        compare(lambda mixer, x, **call: naive(mixer, x, **call) + 1e-4 * x, 2, 5, 7, 0)
    with pytest.raises(AssertionError, match="not close"):
        compare(lambda mixer, x, **call: naive(mixer, x, is_causal=True), 2, 5, 7, 0)


def test_features_are_those_of_elu_and_stay_positive():
    x = torch.linspace(-4, 4, 101, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(elu_features(x), F.elu(x) + 1)
    assert torch.autograd.gradcheck(elu_features, (x[::7].detach().requires_grad_(),))
    far = torch.tensor([-20.0, -80.0])
    assert (elu_features(far) > 0).all()
    assert not (F.elu(far) + 1).any()  # what the plain form makes of them


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("is_causal", [False, True])
def test_many_large_tokens_do_not_overflow(is_causal, dtype):
    q, k, v = (30 * torch.randn(1, 1, 2048, 8) for _ in range(3))
    q, k, v = elu_features(q), elu_features(k), (v.abs() + 1)
    exact = kernel_attention(q, k, v, is_causal)
    with torch.autocast("cpu", dtype):
        y = kernel_attention(q, k, v.to(dtype), is_causal)
    assert y.dtype == dtype
    # bfloat16 has 8 bits: features, values and context are rounded once each.
    torch.testing.assert_close(y.float(), exact, rtol=0.02, atol=0)
    # Counter-example: the sum that the formula writes down.
    context = k.to(torch.float16).transpose(-2, -1) @ v.to(torch.float16)
    assert not context.isfinite().all()


def test_dropout_is_on_the_values():
    mixer = create_attention("linear", 8, num_heads=2, attn_drop=0.999999, proj_bias=False)
    x = torch.randn(2, 5, 8)
    assert not mixer.train()(x).any()
    assert mixer.eval()(x).any()
