"""Semantic tokens: pooling against torch's, the map, and what the tokens are made of."""

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from efficient_vits.reduction import create_reduction
from efficient_vits.reduction.stvit import assign, pool_grid, pool_patches


@settings(max_examples=40, deadline=None)
@given(
    grid=st.tuples(st.integers(1, 15), st.integers(1, 15)),
    parts=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    seed=st.integers(0, 999),
)
def test_pooling_is_adaptive_pooling(grid, parts, seed):
    torch.manual_seed(seed)
    x = torch.randn(2, *grid, 3, dtype=torch.float64, requires_grad=True)
    y = pool_grid(x, *parts)
    expected = F.adaptive_max_pool2d(x.permute(0, 3, 1, 2), parts).permute(0, 2, 3, 1)
    assert torch.equal(y, expected)
    weights = torch.randn_like(y)
    (fast,) = torch.autograd.grad((y * weights).sum(), x)
    (slow,) = torch.autograd.grad((expected * weights).sum(), x)
    torch.testing.assert_close(fast, slow)


def by_hand(module, x, prefix):
    """The two layers of the docstring, one image of a square grid."""

    def attention(layer, queries, context):
        a = layer.attn
        q, (k, v) = a.q(queries), a.kv(context).chunk(2, dim=-1)
        out, d = [], q.shape[-1] // a.num_heads
        for h in range(a.num_heads):
            part = slice(h * d, (h + 1) * d)
            weights = (q[:, part] @ k[:, part].T / d**0.5).softmax(dim=-1)
            out.append(weights @ v[:, part])
        return a.proj(torch.cat(out, dim=-1))

    def run(layer, queries, context):
        y = queries + attention(layer, layer.norm1(queries), layer.norm1(context))
        return y + layer.mlp(layer.norm2(y))

    patches = x[prefix:]
    side = int(len(patches) ** 0.5)
    grid = patches.T.reshape(1, -1, side, side)
    pooled = F.adaptive_max_pool2d(grid, module.semantic_side).flatten(2)[0].T
    s = run(module.first, pooled, torch.cat([pooled, x]))
    s = run(module.second, s + module.centres[0], torch.cat([s, x]))
    return torch.cat([x[:prefix], s])


@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_equals_the_two_layers_by_hand(prefix):
    module = create_reduction(
        "stvit", 16, 4, 1, num_prefix_tokens=prefix, num_heads=4, grid_size=(5, 5), semantic_side=3
    ).double()
    x = torch.randn(2, prefix + 25, 16, dtype=torch.float64)
    y, size, source = module(x, None, None, {})
    assert (size, source) == (None, None)
    for image in range(2):
        torch.testing.assert_close(y[image], by_hand(module, x[image], prefix))


def test_a_patch_goes_to_the_token_that_pays_it_most_attention():
    weights = torch.tensor([[0.5, 0.2, 0.0], [0.1, 0.3, 0.6]]).unsqueeze(0)  # (1, S, N)
    assert assign(torch.tensor([[1, 2, 3, -1]]), weights, 1).tolist() == [[1, 2, 2, -1]]
    assert assign(None, weights, 1) is None


def test_the_grid_of_the_model_is_the_one_that_is_pooled():
    model = timm.create_model("stvit_ti16", img_size=(64, 96), depth=4, semantic_side=2).eval()
    module = model.blocks[1].before["stvit"]
    assert (module.height, module.width) == (4, 6)
    model.set_input_size(img_size=(96, 64))
    assert (module.height, module.width) == (6, 4)
    assert model(torch.randn(1, 3, 96, 64)).shape == (1, 1000)
    assert model.token_counts == [25, 5, 5, 5]
    with pytest.raises(ValueError, match="a grid of 2 x 2 patches, got 5"):
        pool_patches(torch.randn(1, 5, 3), 2, 2, 1)


def test_has_as_many_layers_as_the_vit():
    model = timm.create_model("stvit_s16", device="meta")
    assert model.token_counts == [197] * 4 + [17] * 6
    ours = sum(p.numel() for p in model.parameters())
    plain = sum(p.numel() for p in timm.create_model("vit_s16", device="meta").parameters())
    # Learned centres come in addition, the LayerScale of two layers is not there.
    assert ours == plain + 16 * 384 - 2 * 2 * 384


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [({"semantic_side": 0}, "semantic_side >= 1"), ({"semantic_after": 1.0}, "semantic_after < 1")],
)
def test_what_cannot_be_is_refused(arguments, reason):
    with pytest.raises(ValueError, match=reason):
        create_reduction("stvit", 8, 4, 1, **arguments)


def test_can_only_be_the_first_reduction():
    small = {"img_size": 64, "depth": 4, "r": 1}
    with pytest.raises(ValueError, match="of which ToMe leaves none"):
        timm.create_model("vit_ti16", reduction=["tome", "stvit"], **small)
    model = timm.create_model("vit_ti16", reduction=["stvit", "tome"], **{**small, "r": [0, 1, 1]})
    assert model.token_counts == [17, 16, 15, 15]
