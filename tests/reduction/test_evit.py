"""EViT against versions in plain loops, and the keep rate that a schedule sets."""

import math

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from efficient_vits.models.reduced import dense_tokens
from efficient_vits.reduction import create_reduction
from efficient_vits.reduction.evit import EViT, drop, fuse, set_keep_rate

SMALL = {"img_size": 64, "num_classes": 7, "embed_dim": 32, "num_heads": 4}


def naive(x, scores, keep_rate, prefix, fused):
    """One image, (N, C) and (patches): token by token."""
    patches = sorted(range(len(scores)), key=lambda i: -scores[i].item())
    n = math.ceil(keep_rate * len(patches))
    if n == len(patches):
        return x
    tokens = [*x[:prefix], *(x[prefix + i] for i in patches[:n])]
    if fused:
        tokens.append(sum(scores[i] * x[prefix + i] for i in patches[n:]))
    return torch.stack(tokens)


@settings(max_examples=40, deadline=None)
@given(
    patches=st.integers(1, 14),
    prefix=st.integers(1, 3),
    keep_rate=st.floats(1e-6, 1.0),
    fused=st.booleans(),
    seed=st.integers(0, 999),
)
def test_equals_its_naive_twin(patches, prefix, keep_rate, fused, seed):
    torch.manual_seed(seed)
    x = torch.randn(2, prefix + patches, 5, dtype=torch.float64, requires_grad=True)
    scores = torch.rand(2, patches, dtype=torch.float64, requires_grad=True)
    y, size, source = (fuse if fused else drop)(x, None, None, scores, keep_rate)
    assert size is None
    assert source is None
    slow = torch.stack([naive(x[i], scores[i], keep_rate, prefix, fused) for i in range(2)])
    torch.testing.assert_close(y, slow)
    weights = torch.randn_like(y)
    pair = [
        torch.autograd.grad((z * weights).sum(), (x, scores), materialize_grads=True)
        for z in (y, slow)
    ]
    torch.testing.assert_close(*pair)


@pytest.mark.parametrize("fused", [False, True])
def test_a_patch_is_found_where_it_went(fused):
    x, prefix = torch.randn(2, 2 + 9, 4), 2
    scores, source = torch.rand(2, 9), torch.arange(2, 11).expand(2, -1)
    size = torch.randint(1, 5, (2, 11, 1)).float()
    y, new_size, source = (fuse if fused else drop)(x, size, source, scores, 0.5)
    dense = dense_tokens(y, source)
    for image in range(2):
        kept = scores[image].argsort(descending=True)[:5]
        assert torch.equal(dense[image, kept], x[image, prefix + kept])
        gone = [i for i in range(9) if i not in kept]
        lost = size[image, [prefix + i for i in gone]].sum()
        assert (source[image, gone] == (7 if fused else -1)).all()
        assert size[image].sum() - new_size[image].sum() == (0 if fused else lost)
        if fused:
            assert new_size[image, -1] == lost


def test_the_least_attended_are_dropped_and_not_the_most():
    x = torch.arange(5.0).reshape(1, 5, 1)
    y, _, _ = drop(x, None, None, torch.tensor([[0.1, 0.4, 0.2, 0.3]]), 0.5)
    assert y.flatten().tolist() == [0, 2, 4]
    y, _, _ = fuse(x, None, None, torch.tensor([[0.1, 0.4, 0.2, 0.3]]), 0.5)
    torch.testing.assert_close(y.flatten(), torch.tensor([0, 2, 4, 0.1 * 1 + 0.2 * 3]))


def test_goes_by_the_first_prefix_token_averaged_over_heads():
    attention = torch.zeros(1, 2, 2, 5)
    attention[0, 0, 0, 2:], attention[0, 1, 0, 2:] = (
        torch.tensor([0.9, 0.0, 0.5]),
        torch.tensor([0.0, 0.4, 0.6]),
    )
    attention[0, :, 1, 3] = 1  # the second prefix token has no say
    reduction = create_reduction("evit", 1, 1, 0, num_prefix_tokens=2, keep_rate=0.5)
    x = torch.arange(5.0).reshape(1, 5, 1)
    y, _, _ = reduction(x, None, None, {"class_attention": attention})
    assert y.flatten().tolist() == [0, 1, 4, 2]


@pytest.mark.parametrize(("depth", "where"), [(12, [3, 6, 9]), (24, [6, 12, 18]), (4, [1, 2, 3])])
def test_a_number_is_the_rate_of_three_blocks(depth, where):
    rates = [create_reduction("evit", 8, depth, i).keep_rate for i in range(depth)]
    assert [i for i, rate in enumerate(rates) if rate < 1] == where
    assert {rates[i] for i in where} == {0.7}


def test_numbers_of_tokens_are_the_papers():
    full = {"img_size": 224, "device": "meta"}
    counts = timm.create_model("evit_ti16", **full).token_counts
    assert counts == [197] * 3 + [139] * 3 + [98] * 3 + [69] * 3
    counts = timm.create_model("evit_fuse_ti16", **full).token_counts
    assert counts == [197] * 3 + [140] * 3 + [100] * 3 + [72] * 3
    assert timm.create_model("evit_ti16", keep_rate=1.0, **full).token_counts == [197] * 12


@pytest.mark.parametrize("name", ["evit_ti16", "evit_fuse_ti16"])
def test_a_schedule_sets_the_keep_rate(name):
    torch.manual_seed(0)
    model = timm.create_model(name, depth=4, keep_rate=0.5, **SMALL).eval()
    extra = name == "evit_fuse_ti16"
    assert model.token_counts == ([17, 10, 7, 5] if extra else [17, 9, 5, 3])
    x = torch.randn(2, 3, 64, 64)
    seen = model(x)
    set_keep_rate(model, 1.0)
    assert model.token_counts == [17] * 4
    plain = timm.create_model("vit_ti16", depth=4, no_embed_class=False, init_values=0, **SMALL)
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(x), plain.eval()(x))
    set_keep_rate(model, [1, 0.75, 1.0, 0.5])
    assert model.token_counts == ([17, 14, 14, 9] if extra else [17, 13, 13, 7])
    assert model.forward_features(x).shape[1] == model.token_counts[-1]
    set_keep_rate(model, 0.5)
    assert torch.equal(model(x), seen)


@pytest.mark.parametrize("rate", [0, 1.1, -0.5, [0.5, 1, 1, 1], [1, 0.5], [1, 1, 1, 0]])
def test_an_impossible_keep_rate_is_not_set(rate):
    model = timm.create_model("evit_ti16", depth=4, device="meta", **SMALL)
    with pytest.raises(ValueError, match="keep_rate"):
        set_keep_rate(model, rate)
    assert model.blocks[1].between.evit.keep_rate == 0.7, "half of it was set"


def test_there_must_be_a_keep_rate_to_set():
    model = timm.create_model("evit_ti16", depth=4, keep_rate=1.0, device="meta", **SMALL)
    with pytest.raises(ValueError, match="no block of this model"):
        set_keep_rate(model, 0.7)


@pytest.mark.parametrize("rate", [0, 1.1, [0.5], [0.7, 0.0, 1, 1]])
def test_an_impossible_keep_rate_is_refused(rate):
    with pytest.raises(ValueError, match="0 < keep_rate <= 1"):
        EViT(8, 4, 1, keep_rate=rate)


def test_without_a_class_token_it_says_why():
    with pytest.raises(ValueError, match=r"evit goes by the attention of the class token"):
        timm.create_model("evit_ti16", class_token=False, global_pool="avg", depth=4, **SMALL)


@pytest.mark.parametrize("first", ["tome", "evit"])
def test_stands_beside_another_reduction(first):
    second = "evit_fuse" if first == "tome" else "tome"
    model = timm.create_model("vit_ti16", reduction=[first, second], r=2, depth=4, **SMALL).eval()
    x = torch.randn(2, 3, 64, 64)
    tokens, dense = model.forward_intermediates(x, [3], norm=True, output_fmt="NLC")
    assert tokens.shape[1] == model.token_counts[-1]
    assert torch.equal(dense[0], dense_tokens(tokens, model.token_maps(x)[-1]))
