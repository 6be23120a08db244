"""Each mixer against the plainest form of its paper's formula, outputs and gradients."""

import pytest
import torch
from einops import einsum, rearrange
from hypothesis import given, settings
from hypothesis import strategies as st

from efficient_vits.attention import create_attention


def naive_softmax(mixer, x, size=None):
    q, k, v = rearrange(mixer.qkv(x), "b n (s h d) -> s b h n d", s=3, h=mixer.num_heads)
    logits = einsum(q, k, "b h n d, b h m d -> b h n m") / k.shape[-1] ** 0.5
    weights = logits.exp()
    if size is not None:
        weights = weights * rearrange(size, "b m 1 -> b 1 1 m")
    weights = weights / weights.sum(-1, keepdim=True)
    return mixer.proj(rearrange(weights @ v, "b h n d -> b n (h d)"))


def naive_hydra(mixer, x, size=None):
    """One head per channel with the cosine kernel, as the N x N sum that Hydra avoids."""
    q, k, v = rearrange(mixer.qkv(x), "b n (s c) -> s b n c", s=3)
    q, k = (z / z.pow(2).sum(-1, keepdim=True).sqrt() for z in (q, k))
    weights = einsum(q, k, "b n c, b m c -> b n m c")
    if size is not None:
        weights = weights * rearrange(size, "b m 1 -> b 1 m 1")
    return mixer.proj(einsum(weights, v, "b n m c, b m c -> b n c"))


def naive_linformer(mixer, x):
    q, k, v = rearrange(mixer.qkv(x), "b n (s h d) -> s b h n d", s=3, h=mixer.num_heads)
    k = einsum(mixer.proj_k, k, "n p, b h n d -> b h p d")
    v = einsum(mixer.proj_v, v, "n p, b h n d -> b h p d")
    weights = (einsum(q, k, "b h n d, b h p d -> b h n p") / k.shape[-1] ** 0.5).softmax(-1)
    return mixer.proj(rearrange(weights @ v, "b h n d -> b n (h d)"))


TWINS = {
    "softmax": (naive_softmax, {}),
    "hydra": (naive_hydra, {}),
    "linformer": (naive_linformer, {"k": 3}),
}


def compare(name, heads, head_dim, grid, prefix, seed, **call):
    naive, own = TWINS[name]
    torch.manual_seed(seed)
    mixer = create_attention(
        name, heads * head_dim, num_heads=heads, grid_size=grid, num_prefix_tokens=prefix, **own
    ).double()
    tokens = prefix + grid[0] * grid[1]
    x = torch.randn(2, tokens, heads * head_dim, dtype=torch.float64, requires_grad=True)
    target = torch.randn_like(x)
    results = []
    for forward in (lambda: mixer(x, **call), lambda: naive(mixer, x, **call)):
        mixer.zero_grad()
        x.grad = None
        y = forward()
        (y * target).sum().backward()
        results.append([y.detach(), x.grad, *(p.grad for p in mixer.parameters())])
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow)  # float64: rounding alone


@settings(max_examples=20, deadline=None)
@given(
    heads=st.integers(1, 3),
    head_dim=st.integers(1, 7),
    grid=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    prefix=st.integers(0, 3),
    seed=st.integers(0, 99),
)
@pytest.mark.parametrize("name", list(TWINS))
def test_equals_its_naive_twin(name, heads, head_dim, grid, prefix, seed):
    compare(name, heads, head_dim, grid, prefix, seed)


@pytest.mark.parametrize("name", ["softmax", "hydra"])
def test_equals_its_naive_twin_with_token_sizes(name):
    size = torch.randint(1, 9, (2, 7, 1)).double()
    compare(name, 2, 5, (2, 3), 1, 0, size=size)


@pytest.mark.parametrize("name", list(TWINS))
def test_a_wrong_twin_is_noticed(name, monkeypatch):
    naive, own = TWINS[name]
    monkeypatch.setitem(TWINS, name, (lambda mixer, x: naive(mixer, x) + 1e-4 * x, own))
    with pytest.raises(AssertionError, match="not close"):
        compare(name, 2, 5, (2, 3), 1, 0)


def test_class_attention_is_the_row_of_the_attention_matrix():
    mixer = create_attention("softmax", 12, num_heads=2, report=("class_attention",)).double()
    x, info = torch.randn(2, 7, 12, dtype=torch.float64), {}
    mixer(x, info=info)
    q, k, _ = rearrange(mixer.qkv(x), "b n (s h d) -> s b h n d", s=3, h=2)
    expected = (einsum(q, k, "b h n d, b h m d -> b h n m") / 6**0.5).softmax(-1)[:, :, :1]
    torch.testing.assert_close(info["class_attention"], expected)


def test_linformer_keeps_the_scale_of_what_it_projects():
    """A constant image that only gets larger keeps its projected keys."""
    mixer = create_attention("linformer", 8, num_heads=2, grid_size=(4, 4), k=3)
    with torch.no_grad():
        mixer.proj_k.fill_(0.25)
    patches = mixer.proj_k[1:].sum(0)
    mixer.set_grid_size((8, 6))
    torch.testing.assert_close(mixer.proj_k[1:].sum(0), patches)
