"""ProbSparse attention against its formula, query by query."""

import math

import pytest
import timm
import torch
from einops import rearrange
from hypothesis import given, settings
from hypothesis import strategies as st

from efficient_vits._random import draw_seed, seeded_integers
from efficient_vits.attention import create_attention


def build(dim=12, num_heads=2, **own):
    return create_attention("informer", dim, num_heads=num_heads, **own).double().eval()


def naive(mixer, x):
    q, k, v = rearrange(mixer.qkv(x), "b n (s h d) -> s b h n d", s=3, h=mixer.num_heads)
    N = x.shape[1]
    u = min(N, mixer.factor * max(1, math.ceil(math.log(N))))
    drawn = seeded_integers(N * u, draw_seed(mixer.seed, False, x.device)).view(N, u) % N
    logits = q @ k.transpose(-2, -1) / mixer.head_dim**0.5
    y = []
    for b in range(len(x)):
        for h in range(mixer.num_heads):
            seen = [logits[b, h, n, drawn[n]] for n in range(N)]
            measure = torch.stack([s.max() - s.sum() / N for s in seen])
            rows = v[b, h].mean(0).repeat(N, 1)
            attending = torch.zeros(N, 1, dtype=torch.bool)
            attending[measure.argsort(descending=True)[:u]] = True
            y.append(torch.where(attending, logits[b, h].softmax(-1) @ v[b, h], rows))
    return mixer.proj(rearrange(torch.stack(y), "(b h) n d -> b n (h d)", b=len(x)))


def outputs_and_gradients(forward, mixer, x):
    mixer.zero_grad()
    x.grad = None
    y = forward(x)
    (y * torch.arange(y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in mixer.parameters())]


@settings(max_examples=15, deadline=None)
@given(
    heads=st.integers(1, 3),
    head_dim=st.integers(1, 6),
    tokens=st.integers(1, 31),
    factor=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_equals_its_naive_twin(heads, head_dim, tokens, factor, seed):
    torch.manual_seed(seed)
    mixer = build(heads * head_dim, heads, factor=factor, seed=seed, depth=seed % 12)
    x = torch.randn(2, tokens, heads * head_dim, dtype=torch.float64, requires_grad=True)
    fast = outputs_and_gradients(mixer, mixer, x)
    slow = outputs_and_gradients(lambda x: naive(mixer, x), mixer, x)
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b)


def test_another_draw_is_noticed():
    mixer, x = build(factor=1), torch.randn(2, 30, 12, dtype=torch.float64)
    expected = naive(mixer, x)
    mixer.seed += 1
    with pytest.raises(AssertionError, match="not close"):
        torch.testing.assert_close(mixer(x), expected)


def test_all_attend_where_factor_is_large():
    own, softmax = build(factor=99), create_attention("softmax", 12, num_heads=2).double()
    softmax.load_state_dict(own.state_dict())
    x = torch.randn(2, 30, 12, dtype=torch.float64)
    torch.testing.assert_close(own(x), softmax(x))


def test_evaluation_repeats_itself_and_training_draws_anew():
    mixer, x = build(factor=1), torch.randn(2, 60, 12, dtype=torch.float64)
    assert torch.equal(mixer(x), mixer(x))
    mixer.train()
    assert not torch.equal(mixer(x), mixer(x))
    torch.manual_seed(1)
    first = mixer(x)
    torch.manual_seed(1)
    assert torch.equal(mixer(x), first)


def test_every_block_and_every_seed_draws_other_keys():
    seeds = [build(seed=s, depth=b).seed for s in range(20) for b in range(24)]
    assert len(set(seeds)) == len(seeds)
    draws = [seeded_integers(50, draw_seed(s, False, torch.device("cpu"))) for s in (0, 1, 2)]
    assert not any(torch.isin(a, b).any() for a, b in [draws[:2], draws[1:]])


def test_the_block_normalises_after_each_half():
    model = timm.create_model("informer_ti16", depth=1, img_size=32).eval()
    block, x = model.blocks[0], torch.randn(2, 5, 192)
    middle = block.norm1(x + block.attn(x))
    torch.testing.assert_close(block(x), block.norm2(middle + block.mlp(middle)))
    other = timm.create_model("informer_ti16", depth=1, img_size=32, attention="hydra")
    assert type(other.blocks[0]) is type(block)


def test_factor_must_be_positive():
    with pytest.raises(ValueError, match="factor >= 1"):
        build(factor=0)
