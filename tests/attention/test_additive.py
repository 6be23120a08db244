"""Efficient additive attention against its formula token by token, and against timm's module."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.swiftformer import EfficientAdditiveAttention

from efficient_vits.attention import create_attention


def naive_additive(mixer, x):
    images = []
    for image in x:
        q = [F.normalize(mixer.q(token), dim=0) for token in image]
        k = [F.normalize(mixer.k(token), dim=0) for token in image]
        alpha = torch.stack([q_n @ mixer.weight[:, 0] for q_n in q]) / len(image[0]) ** 0.5
        alpha = alpha / alpha.square().sum().sqrt()
        query = sum(a * q_n for a, q_n in zip(alpha, q, strict=True))
        tokens = [mixer.mix(query * k_n) + q_n for q_n, k_n in zip(q, k, strict=True)]
        images.append(mixer.proj(torch.stack(tokens)))
    return torch.stack(images)


@settings(deadline=None, max_examples=15)
@given(tokens=st.integers(1, 11), dim=st.sampled_from([1, 5, 12]), bias=st.booleans())
def test_outputs_and_gradients_are_those_of_the_formula(tokens, dim, bias):
    mixer = create_attention("additive", dim, num_heads=1, qkv_bias=bias, proj_bias=bias).double()
    x = torch.randn(2, tokens, dim, dtype=torch.float64, requires_grad=True)
    wanted = (x, *mixer.parameters())
    got, want = mixer(x), naive_additive(mixer, x)
    torch.testing.assert_close(got, want)
    seed = torch.randn_like(got)
    torch.testing.assert_close(
        torch.autograd.grad(got, wanted, seed), torch.autograd.grad(want, wanted, seed)
    )


def pair():
    theirs = EfficientAdditiveAttention(12, 12).double()
    ours = create_attention("additive", 12, num_heads=3).double()
    names = {"q": "to_query", "k": "to_key", "mix": "proj", "proj": "final"}
    state = {
        f"{ours_name}.{kind}": theirs.state_dict()[f"{name}.{kind}"]
        for ours_name, name in names.items()
        for kind in ("weight", "bias")
    }
    ours.load_state_dict({**state, "weight": theirs.w_g.detach()})
    x = torch.randn(2, 15, 12, dtype=torch.float64)
    return ours, x, theirs(x.transpose(1, 2).reshape(2, 12, 3, 5)).flatten(2).transpose(1, 2)


def test_it_is_timms():
    ours, x, want = pair()
    torch.testing.assert_close(ours(x), want)


def test_another_weight_of_the_queries_would_be_noticed():
    ours, x, want = pair()
    with torch.no_grad():
        ours.weight[0] += 0.1
    with pytest.raises(AssertionError, match="not close"):
        torch.testing.assert_close(ours(x), want)
