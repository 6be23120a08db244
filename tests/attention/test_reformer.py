"""LSH attention against its formula, an N x N matrix of how often each pair meets."""

import math

import pytest
import torch
from einops import rearrange
from hypothesis import given, settings
from hypothesis import strategies as st

from efficient_vits._random import draw_seed, seeded_normal
from efficient_vits.attention import create_attention
from efficient_vits.attention.reformer import lsh_order


def build(dim=12, num_heads=2, **own):
    return create_attention("reformer", dim, num_heads=num_heads, **own).double().eval()


def heads(z, mixer):
    return rearrange(z, "b n (h d) -> b h n d", h=mixer.num_heads)


def meetings(mixer, k):
    """How many rounds let token n attend to token m, (B, heads, N, N)."""
    N = k.shape[2]
    m = min(mixer.bucket_size, N)
    order = lsh_order(k, mixer.num_hashes, m, draw_seed(mixer.seed, False, k.device))
    place = order.argsort(-1) // m  # chunk of every token
    back = place.unsqueeze(-1) - place.unsqueeze(-2)
    return ((back == 0) | (back == 1)).sum(2)


def naive(mixer, x):
    q, v = heads(mixer.qk(x), mixer), heads(mixer.v(x), mixer)
    k = q / q.norm(dim=-1, keepdim=True)
    logits = q @ k.transpose(-2, -1) / mixer.head_dim**0.5
    logits = logits - 1e5 * torch.eye(x.shape[1])
    weights = (logits + meetings(mixer, k).double().log()).softmax(-1)
    return mixer.proj(rearrange(weights @ v, "b h n d -> b n (h d)"))


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
    bucket_size=st.integers(1, 9),
    num_hashes=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_equals_its_naive_twin(heads, head_dim, tokens, bucket_size, num_hashes, seed):
    torch.manual_seed(seed)
    own = {"bucket_size": bucket_size, "num_hashes": num_hashes, "seed": seed}
    mixer = build(heads * head_dim, heads, **own)
    x = torch.randn(2, tokens, heads * head_dim, dtype=torch.float64, requires_grad=True)
    fast = outputs_and_gradients(mixer, mixer, x)
    slow = outputs_and_gradients(lambda x: naive(mixer, x), mixer, x)
    for a, b in zip(fast, slow, strict=True):
        # Differences of 1e5 leave eleven digits of float64.
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


def test_another_hash_is_noticed():
    mixer, x = build(bucket_size=4, num_hashes=1), torch.randn(2, 30, 12, dtype=torch.float64)
    expected = naive(mixer, x)
    mixer.seed += 1
    with pytest.raises(AssertionError, match="not close"):
        torch.testing.assert_close(mixer(x), expected)


@pytest.mark.parametrize("buckets", [2, 8, 66, 256])
def test_similar_directions_share_a_bucket(buckets):
    from efficient_vits.attention.reformer import lsh_buckets

    k = torch.nn.functional.normalize(torch.randn(1, 1, 200, 16), dim=-1)
    near = torch.nn.functional.normalize(k + 0.01 * torch.randn_like(k), dim=-1)
    seed = torch.tensor([3])
    first, second, far = (lsh_buckets(z, 4, buckets, seed) for z in (k, near, -k))
    assert first.shape == (1, 1, 4, 200)
    assert (first == second).float().mean() > 0.8
    assert not (first == far).any()
    assert first.min() >= 0
    assert first.max() < 1.3 * buckets
    assert not torch.equal(first[:, :, 0], first[:, :, 1]), "rounds must differ"


def test_the_numbers_behind_the_hash_are_normal_and_of_their_seed():
    z = [seeded_normal(20000, torch.tensor([seed])) for seed in (0, 1)]
    for draw in z:
        assert draw.mean().abs() < 0.03
        assert (draw.std() - 1).abs() < 0.03
        assert ((draw**4).mean() - 3).abs() < 0.3
    assert torch.corrcoef(torch.stack(z))[0, 1].abs() < 0.03


def test_evaluation_repeats_itself_and_training_draws_anew():
    mixer = build(bucket_size=4, num_hashes=1)
    x = torch.randn(2, 60, 12, dtype=torch.float64)
    assert torch.equal(mixer(x), mixer(x))
    mixer.train()
    assert not torch.equal(mixer(x), mixer(x))
    torch.manual_seed(1)
    first = mixer(x)
    torch.manual_seed(1)
    assert torch.equal(mixer(x), first)


def saved_bytes(mixer, tokens):
    """What the forward pass keeps for the backward pass; each storage counts once."""
    storages = {}

    def pack(t):
        storages[t.untyped_storage().data_ptr()] = t.untyped_storage()
        return t

    x = torch.randn(1, tokens, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = mixer(x)
    own = {p.untyped_storage().data_ptr() for p in mixer.parameters()}
    assert y.requires_grad
    return sum(s.nbytes() for pointer, s in storages.items() if pointer not in own)


def test_saved_activations_grow_slower_than_n_log_n_and_end_below_softmax():
    lsh = create_attention("reformer", 64, num_heads=1).train()
    softmax = create_attention("softmax", 64, num_heads=1).train()
    softmax.fused_attn = False
    small, large = 196, 4096
    growth = saved_bytes(lsh, large) / saved_bytes(lsh, small)
    n_log_n = large * math.log(large) / (small * math.log(small))
    assert growth < n_log_n < saved_bytes(softmax, large) / saved_bytes(softmax, small)
    assert saved_bytes(lsh, large) < saved_bytes(softmax, large)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"bucket_size": 0}, "bucket_size"),
        ({"num_hashes": 0}, "num_hashes"),
        ({"qk_norm": True, "norm_layer": torch.nn.LayerNorm}, "qk_norm"),
    ],
)
def test_impossible_arguments_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        build(**arguments)
