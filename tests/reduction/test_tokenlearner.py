"""TokenLearner: averages token by token, shared blocks, and the map of a soft assignment."""

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from efficient_vits.reduction import create_reduction
from efficient_vits.reduction.tokenlearner import summarise


def naive_summary(x, scores, size, prefix):
    """One image, (P + N, C), (N, S), (N): every average on its own."""
    tokens = [x[i] for i in range(prefix)]
    for s in range(scores.shape[1]):
        weights = [float(size[n]) * scores[n, s].exp() for n in range(len(scores))]
        total = sum(weights)
        tokens.append(sum(w / total * x[prefix + n] for n, w in enumerate(weights)))
    return torch.stack(tokens)


@settings(max_examples=30, deadline=None)
@given(
    patches=st.integers(1, 11),
    prefix=st.integers(0, 3),
    learned=st.integers(1, 7),
    seed=st.integers(0, 999),
)
def test_equals_its_naive_twin(patches, prefix, learned, seed):
    torch.manual_seed(seed)
    x = torch.randn(1, prefix + patches, 5, dtype=torch.float64, requires_grad=True)
    scores = torch.randn(1, patches, learned, dtype=torch.float64, requires_grad=True)
    size = torch.randint(1, 9, (1, prefix + patches, 1)).double()
    y, _ = summarise(x, scores, size, None, prefix)
    expected = naive_summary(x[0], scores[0], size[0, prefix:, 0], prefix)
    torch.testing.assert_close(y[0], expected)
    weights = torch.randn_like(y)
    fast = torch.autograd.grad((y * weights).sum(), (x, scores))
    slow = torch.autograd.grad((expected * weights[0]).sum(), (x, scores))
    torch.testing.assert_close(fast, slow)


def test_a_merged_token_weighs_like_the_tokens_that_it_stands_for():
    x, scores = torch.randn(1, 4, 3), torch.randn(1, 4, 2)
    x[:, 3], scores[:, 3] = x[:, 2], scores[:, 2]
    four, _ = summarise(x, scores, None, None, 0)
    size = torch.tensor([1.0, 1.0, 2.0]).reshape(1, 3, 1)
    three, _ = summarise(x[:, :3], scores[:, :3], size, None, 0)
    torch.testing.assert_close(three, four)
    unweighted, _ = summarise(x[:, :3], scores[:, :3], None, None, 0)
    assert (unweighted - four).abs().max() > 1e-3


def test_a_patch_goes_to_the_average_in_which_it_weighs_most():
    """Two prefix tokens; the weights of each average are over the three patches."""
    weights = torch.tensor([[0.7, 0.1], [0.2, 0.6], [0.1, 0.3]])
    source = torch.tensor([[2, 3, 4, -1]])
    _, source = summarise(torch.randn(1, 5, 4), weights.log().unsqueeze(0), None, source, 2)
    assert source.tolist() == [[2, 3, 3, -1]]


def shared(depth=4, at=0.5, **arguments):
    return timm.create_model(
        "tokenlearner_ti16_8_50",
        img_size=64,
        depth=depth,
        at=at,
        init_values=1.0,
        num_classes=7,
        share_blocks=True,
        **arguments,
    ).eval()


@pytest.mark.parametrize(("depth", "at", "runs"), [(4, 0.5, 4), (4, 0.75, 6), (5, 0.3, 2)])
def test_shared_blocks_run_twice(depth, at, runs):
    """As many as there are before the point, again, whatever the depth."""
    model = shared(depth, at)
    assert len(model.blocks) == len(model.feature_info) == runs
    first, again = model.blocks[: runs // 2], model.blocks[runs // 2 :]
    for a, b in zip(first, again, strict=True):
        assert [*a.attn.parameters(), *a.mlp.parameters()] == [
            *b.attn.parameters(),
            *b.mlp.parameters(),
        ]
        assert a.ls1 is b.ls1
        assert a.norm2 is b.norm2
    assert model.token_counts == [17] * (runs // 2) + [9] * (runs // 2)

    images = torch.randn(2, 3, 64, 64)
    x = model.norm_pre(model._pos_embed(model.patch_embed(images)))
    for block in first:
        x = block(x, None, None, {})[0]
    x = again[0].before["tokenlearner"](x, None, None, {})[0]
    for block in first:
        x = block(x, None, None, {})[0]
    torch.testing.assert_close(model.forward_features(images), model.norm(x))


def test_blocks_of_their_own_are_the_default():
    model = timm.create_model("tokenlearner_ti16_8_75", device="meta")
    assert len(model.blocks) == 12
    assert model.token_counts == [197] * 9 + [9] * 3
    assert model.blocks[9].attn is not model.blocks[0].attn


def test_shared_blocks_train_and_load():
    model = shared()
    model(torch.randn(2, 3, 64, 64)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    twin = shared()
    twin.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(twin(x), model(x))
    maps = model.forward_intermediates(x, intermediates_only=True)
    assert [m.shape for m in maps] == [(1, 192, 4, 4)] * 4


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"learned_tokens": 0}, "learned_tokens >= 1"),
        ({"at": 1.0}, "0 <= at < 1"),
        ({"at": 0.1, "share_blocks": True}, "leaves none to share"),
    ],
)
def test_what_cannot_be_is_refused(arguments, reason):
    with pytest.raises(ValueError, match=reason):
        create_reduction("tokenlearner", 8, 4, 2, **arguments)


def test_shared_blocks_stand_alone():
    with pytest.raises(ValueError, match="ToMe in them would"):
        shared(reduction=["tome", "tokenlearner"])
    together = timm.create_model(
        "vit_ti16", img_size=64, depth=4, reduction=["tome", "tokenlearner"], r=2
    ).eval()
    assert together.token_counts == [15, 13, 7, 5]
    assert together(torch.randn(1, 3, 64, 64)).isfinite().all()


def test_an_attention_bound_to_the_grid_is_refused_in_the_last_block_too():
    with pytest.raises(ValueError, match="leaves 9 of 17 tokens to block 3"):
        timm.create_model("tokenlearner_ti16_8_75", img_size=64, depth=4, attention="linformer")
