"""Sparse Sinkhorn attention against its formula, token by token, and its options."""

import pytest
import torch
from einops import einsum, rearrange
from hypothesis import given, settings
from hypothesis import strategies as st

from efficient_vits.attention import create_attention
from efficient_vits.attention.sinkhorn import bucket_size, gumbel_noise, sinkhorn

SORTS = [
    {"sort": "sinkhorn"},
    {"sort": "sinkhorn", "keys_as_values": True, "temperature": 0.3, "iterations": 3},
    {"sort": "topk"},
    {"sort": "topk", "n_top": 3, "keys_as_values": True},
]


def naive_sorting(scores, sort, n_top=1, iterations=8, temperature=0.75):
    """For one head: rows say what the sorted buckets of each bucket are made of, (U, T, U)."""
    U = len(scores)
    if sort == "topk":
        weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
        best = scores.argsort(-1, descending=True)[:, :n_top]
        return torch.stack(
            [torch.stack([weights[u] * (torch.arange(U) == v) for v in best[u]]) for u in range(U)]
        )
    R = (scores / temperature).exp()
    for _ in range(iterations):
        R = R / R.sum(1, keepdim=True)
        R = R / R.sum(0, keepdim=True)
    return R.unsqueeze(1)


def naive_sinkhorn(mixer, x, keys_as_values=False, **own):
    """One softmax for each token over what it may see; nothing is batched."""
    P = mixer.num_prefix_tokens
    qkv = rearrange(mixer.qkv(x), "b n (s h d) -> s b h n d", s=3, h=mixer.num_heads)
    images = []
    for image in qkv.unbind(1):
        heads = []
        for q, k, v in image.unbind(1):
            d = q.shape[-1]
            n = len(q) - P
            size = max(s for s in range(1, mixer.max_bucket + 1) if n % s == 0)
            bq, bk, bv = (rearrange(z[P:], "(u b) d -> u b d", b=size) for z in (q, k, v))
            scores = einsum(bq.mean(1), bk.mean(1), "u d, v d -> u v") / d**0.5
            R = naive_sorting(scores, **own)
            sorted_k = einsum(R, bk, "u t v, v b d -> u t b d").flatten(1, 2)
            sorted_v = einsum(R, bk if keys_as_values else bv, "u t v, v b d -> u t b d")
            sorted_v = sorted_v.flatten(1, 2)
            rows = []
            for i in range(len(q)):
                seen_k, seen_v = k, v
                if i >= P:
                    u = (i - P) // size
                    seen_k = torch.cat([k[:P], bk[u], sorted_k[u]])
                    seen_v = torch.cat([v[:P], bv[u], sorted_v[u]])
                rows.append((seen_k @ q[i] / d**0.5).softmax(0) @ seen_v)
            heads.append(torch.stack(rows))
        images.append(torch.cat(heads, dim=-1))
    return mixer.proj(torch.stack(images))


def compare(naive, heads, head_dim, tokens, prefix, max_bucket, seed, own):
    torch.manual_seed(seed)
    dim = heads * head_dim
    mixer = create_attention(
        "sinkhorn", dim, num_heads=heads, num_prefix_tokens=prefix, max_bucket=max_bucket, **own
    )
    mixer = mixer.double().eval()
    x = torch.randn(2, prefix + tokens, dim, dtype=torch.float64, requires_grad=True)
    target = torch.randn_like(x)
    results = []
    for forward in (mixer, lambda x: naive(mixer, x, **own)):
        mixer.zero_grad()
        x.grad = None
        y = forward(x)
        (y * target).sum().backward()
        results.append([y.detach(), x.grad, *(p.grad for p in mixer.parameters())])
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow)  # float64: rounding alone


@settings(max_examples=15, deadline=None)
@given(
    heads=st.integers(1, 3),
    head_dim=st.integers(1, 7),
    tokens=st.integers(1, 30),
    prefix=st.sampled_from([0, 1, 2, 5]),
    max_bucket=st.integers(1, 9),
    seed=st.integers(0, 99),
)
@pytest.mark.parametrize("own", SORTS)
def test_equals_its_naive_twin(heads, head_dim, tokens, prefix, max_bucket, seed, own):
    compare(naive_sinkhorn, heads, head_dim, tokens, prefix, max_bucket, seed, own)


@pytest.mark.parametrize("own", SORTS)
def test_a_wrong_twin_is_noticed(own):
    def wrong(mixer, x, **own):
        return naive_sinkhorn(mixer, x, **own) + 1e-4 * x

    with pytest.raises(AssertionError, match="not close"):
        compare(wrong, 2, 5, 12, 1, 4, 0, own)


def test_the_catalogs_counts_of_tokens():
    sizes = {196: 28, 576: 32, 64: 32, 49: 7, 15: 15, 31: 31, 37: 1, 1: 1}
    assert {n: bucket_size(n, 32) for n in sizes} == sizes


def test_sinkhorn_normalisation_gives_a_permutation_where_scores_are_clear():
    torch.manual_seed(0)
    R = sinkhorn(torch.randn(3, 5, 5, dtype=torch.float64), 50)
    torch.testing.assert_close(R.sum(-1), torch.ones(3, 5, dtype=torch.float64))
    torch.testing.assert_close(R.sum(-2), torch.ones(3, 5, dtype=torch.float64))
    permutation = torch.eye(5)[torch.tensor([2, 0, 1, 4, 3])]
    torch.testing.assert_close(sinkhorn(20 * permutation, 8), permutation)
    # Rows alone, as a softmax has them, are no permutation.
    assert (torch.randn(5, 5).softmax(-1).sum(0) - 1).abs().max() > 0.1


def test_noise_is_gumbels_and_there_in_training_only():
    torch.manual_seed(0)
    noise = gumbel_noise(torch.empty(100_000, dtype=torch.float64))
    assert noise.isfinite().all()
    assert noise.mean() == pytest.approx(0.5772, abs=0.02)  # five times the standard error
    assert noise.var() == pytest.approx(1.6449, abs=0.07)
    mixer, x = create_attention("sinkhorn", 8, num_heads=2, max_bucket=3), torch.randn(2, 13, 8)
    assert torch.equal(mixer.eval()(x), mixer(x))
    assert not torch.equal(mixer.train()(x), mixer(x))
    torch.manual_seed(1)
    first = mixer(x)
    torch.manual_seed(1)
    assert torch.equal(mixer(x), first)


@pytest.mark.parametrize(
    "own",
    [
        {"max_bucket": 0},
        {"n_top": 0},
        {"iterations": -1},
        {"temperature": 0.0},
        {"sort": "by_size"},
    ],
)
def test_what_makes_no_sense_is_refused(own):
    with pytest.raises(ValueError, match=str(next(iter(own)))):
        create_attention("sinkhorn", 8, num_heads=2, **own)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("own", SORTS)
def test_many_buckets_stay_finite_in_half_precision(own, dtype):
    torch.manual_seed(0)
    mixer = create_attention("sinkhorn", 32, num_heads=4, max_bucket=3, **own).train()
    for x in (30 * torch.randn(2, 22, 32), torch.zeros(2, 22, 32), torch.full((2, 22, 32), 30.0)):
        x.requires_grad_()
        with torch.autocast("cpu", dtype):
            y = mixer(x)
        y.float().sum().backward()
        assert y.isfinite().all()
        assert x.grad.isfinite().all()
        assert all(p.grad.isfinite().all() for p in mixer.parameters())


def test_class_attention_is_what_the_prefix_tokens_pay():
    mixer = create_attention(
        "sinkhorn", 12, num_heads=2, num_prefix_tokens=2, report=("class_attention",)
    ).double()
    x, info = torch.randn(2, 8, 12, dtype=torch.float64), {}
    y = mixer.eval()(x, info=info)
    *_, v = rearrange(mixer.qkv(x), "b n (s h d) -> s b h n d", s=3, h=2)
    seen = rearrange(info["class_attention"] @ v, "b h p d -> b p (h d)")
    torch.testing.assert_close(mixer.proj(seen), y[:, :2])
