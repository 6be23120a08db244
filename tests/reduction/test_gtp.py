"""GTP against a version in plain loops: the graph, who matters, and what is handed on."""

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from efficient_vits.attention import create_attention
from efficient_vits.reduction import create_reduction
from efficient_vits.reduction.gtp import (
    GTP,
    SELECTIONS,
    SparsifiedAttention,
    importance,
    propagate,
    strongest,
    token_graph,
)

SMALL = {"img_size": 64, "num_classes": 7, "embed_dim": 32, "num_heads": 4, "depth": 4}
F64 = {"dtype": torch.float64}


def naive_graph(patches, grid, num_neighbours, kind):
    """One image, (N, C): edge by edge."""
    N = len(patches)
    unit = [p / p.norm() for p in patches]
    graph = torch.zeros(N, N, **F64)
    for i in range(N):
        alike = sorted((j for j in range(N) if j != i), key=lambda j: -(unit[i] @ unit[j]).item())
        for j in range(N):
            rows, columns = abs(i // grid[1] - j // grid[1]), abs(i % grid[1] - j % grid[1])
            touching = i != j and rows <= 1 and columns <= 1
            similar = j in alike[:num_neighbours]
            edge = {"spatial": touching, "semantic": similar, "mixed": touching or similar}[kind]
            graph[i, j] = float(edge)
    degree = [max(1.0, row.sum().item()) for row in graph]
    for i in range(N):
        for j in range(N):
            graph[i, j] /= (degree[i] * degree[j]) ** 0.5
    return graph


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(1, 4),
    width=st.integers(1, 5),
    num_neighbours=st.integers(1, 9),
    kind=st.sampled_from(["spatial", "semantic", "mixed"]),
    seed=st.integers(0, 999),
)
def test_the_graph_equals_its_naive_twin(height, width, num_neighbours, kind, seed):
    torch.manual_seed(seed)
    patches = torch.randn(2, height * width, 6, **F64)
    graph = token_graph(patches, (height, width), num_neighbours, kind)
    slow = [naive_graph(image, (height, width), num_neighbours, kind) for image in patches]
    torch.testing.assert_close(graph, torch.stack(slow))


def test_patches_in_the_middle_have_eight_neighbours_and_corners_three():
    graph = token_graph(torch.randn(1, 12, 4), (3, 4), 1, "spatial") > 0
    assert graph[0].sum(-1).tolist() == [3, 5, 5, 3, 5, 8, 8, 5, 3, 5, 5, 3]
    assert not graph[0].diagonal().any()
    wide = token_graph(torch.randn(1, 12, 4), (2, 6), 1, "spatial") > 0
    assert wide[0].sum(-1).tolist() == [3, 5, 5, 5, 5, 3] * 2


def naive_importance(attention, selection, prefix):
    """One image, (heads, N, N): patch by patch."""
    over_heads = max if selection.endswith("Max") else lambda values: sum(values) / len(values)
    N = attention.shape[-1]
    score = []
    for i in range(prefix, N):
        cls = over_heads([head[0, i].item() for head in attention])
        received = over_heads([sum(head[j, i].item() for j in range(N)) for head in attention])
        own = over_heads([head[i, i].item() for head in attention])
        kinds = {"CLS": cls, "IMG": received, "Diag": own, "Mixed": own * received}
        score.append(kinds[selection[: selection.index("Attn")]])
    return torch.tensor(score, **F64)


@pytest.mark.parametrize("prefix", [0, 1, 3])
@pytest.mark.parametrize("selection", SELECTIONS)
def test_importance_equals_its_naive_twin(selection, prefix):
    attention = torch.rand(2, 3, prefix + 7, prefix + 7, **F64)
    slow = torch.stack([naive_importance(image, selection, prefix) for image in attention])
    torch.testing.assert_close(importance(attention, selection, prefix), slow)


def naive_propagate(x, size, graph, score, num_prop, alpha, prefix):
    """One image, (N, C), (N), (patches, patches), (patches)."""
    order = sorted(range(len(score)), key=lambda i: -score[i].item())
    kept = order[: len(order) - min(num_prop, len(order) - 1)]
    gone = order[len(kept) :]
    tokens, sizes = list(x[:prefix]), list(size[:prefix])
    for i in kept:
        edges = [(j, graph[i, j]) for j in gone]
        tokens.append(x[prefix + i] + alpha * sum(w * x[prefix + j] for j, w in edges))
        sizes.append(size[prefix + i] + alpha * sum(w * size[prefix + j] for j, w in edges))
    return torch.stack(tokens), torch.stack(sizes), graph[kept][:, kept]


@settings(max_examples=40, deadline=None)
@given(
    patches=st.integers(1, 11),
    prefix=st.integers(0, 3),
    num_prop=st.integers(1, 12),
    alpha=st.floats(0, 2),
    seed=st.integers(0, 999),
)
def test_propagation_equals_its_naive_twin(patches, prefix, num_prop, alpha, seed):
    torch.manual_seed(seed)
    x = torch.randn(2, prefix + patches, 5, requires_grad=True, **F64)
    size = 1 + torch.rand(2, prefix + patches, 1, **F64)
    graph, score = torch.rand(2, patches, patches, **F64), torch.rand(2, patches, **F64)
    y, new_size, _, new_graph = propagate(x, size, None, graph, score, num_prop, alpha)
    slow = [
        naive_propagate(x[i], size[i, :, 0], graph[i], score[i], num_prop, alpha, prefix)
        for i in range(2)
    ]
    tokens, sizes, graphs = (torch.stack(part) for part in zip(*slow, strict=True))
    torch.testing.assert_close(y, tokens)
    torch.testing.assert_close(new_size[..., 0], sizes)
    torch.testing.assert_close(new_graph, graphs)
    weights = torch.randn_like(y)
    torch.testing.assert_close(*(torch.autograd.grad((z * weights).sum(), x) for z in (y, tokens)))


def test_a_propagated_patch_is_where_most_of_it_went():
    """Two prefix tokens; patches 1 and 3 go: 1 mostly to patch 2, 3 to nobody."""
    graph = torch.zeros(1, 4, 4)
    graph[0, 0, 1], graph[0, 2, 1], graph[0, 1, 3] = 0.2, 0.3, 0.5
    score, source = torch.tensor([[0.9, 0.2, 0.8, 0.1]]), torch.tensor([[2, 3, 4, 5, -1]])
    x = torch.arange(6.0).reshape(1, 6, 1)
    y, size, source, _ = propagate(x, None, source, graph, score, 2, 0.5)
    torch.testing.assert_close(y.flatten(), torch.tensor([0, 1, 2 + 0.3, 4 + 0.45]))
    torch.testing.assert_close(size.flatten(), torch.tensor([1, 1, 1.1, 1.15]))
    assert source.tolist() == [[2, 3, 3, -1, -1]]


def naive_strongest(weights, share):
    """One head, (N, N)."""
    ranked = sorted(weights.flatten().tolist())
    smaller = int(len(ranked) * (1 - share))
    border = ranked[max(smaller, 1) - 1]
    return torch.where(weights >= border, weights, 0.0)


@pytest.mark.parametrize("share", [1e-6, 0.1, 0.5, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("n", [1, 2, 7])
def test_the_strongest_weights_equal_those_of_the_naive_twin(share, n):
    weights = torch.rand(2, 3, n, n, requires_grad=True, **F64)
    kept = strongest(weights, share)
    slow = torch.stack([naive_strongest(head, share) for head in weights.detach().flatten(0, 1)])
    torch.testing.assert_close(kept.flatten(0, 1), slow)
    (gradient,) = torch.autograd.grad(kept.sum(), weights)
    assert torch.equal(gradient, (kept > 0).to(gradient.dtype))


@pytest.mark.parametrize("size", [None, "random"])
def test_sparsified_attention_is_softmax_attention_without_the_small_weights(size):
    attention = SparsifiedAttention(12, 2, report=("attention",)).double()
    plain = create_attention("softmax", 12, num_heads=2, report=("attention",)).double()
    plain.load_state_dict(attention.state_dict())
    x = torch.randn(2, 6, 12, **F64)
    size = 1 + torch.rand(2, 6, 1, **F64) if size else None
    full, part = {}, {}
    expected = plain(x, size=size, info=full)
    y = attention(x, size=size, info=part)
    torch.testing.assert_close(part["attention"], strongest(full["attention"], 0.5))
    assert (part["attention"] == 0).flatten(2).sum(-1).tolist() == [[17, 17]] * 2
    v = plain.qkv(x).chunk(3, dim=-1)[2].unflatten(2, (2, 6)).transpose(1, 2)
    mixed = (part["attention"] @ v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(y, plain.proj(mixed))
    assert not torch.allclose(y, expected)
    attention.sparsity = 1.0
    torch.testing.assert_close(attention(x, size=size, info={}), expected)


def test_sparsified_attention_cannot_be_causal():
    with pytest.raises(ValueError, match="causal"):
        SparsifiedAttention(8, 2)(torch.randn(1, 4, 8), is_causal=True)


def test_softmax_attention_reports_the_map_that_it_uses():
    attention = create_attention("softmax", 12, num_heads=2, report=("attention",)).double()
    x, info = torch.randn(2, 6, 12, **F64), {}
    y = attention(x, info=info)
    plain = create_attention("softmax", 12, num_heads=2).double()
    plain.load_state_dict(attention.state_dict())
    torch.testing.assert_close(y, plain(x))
    v = plain.qkv(x).chunk(3, dim=-1)[2].unflatten(2, (2, 6)).transpose(1, 2)
    mixed = (info["attention"] @ v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(y, plain.proj(mixed))


def test_the_graph_is_that_of_the_embeddings_and_shrinks_with_them():
    model = timm.create_model("gtp_ti16", num_prop=[0, 3, 0, 2], **SMALL).eval()
    assert model.token_counts == [17, 14, 14, 12]
    assert [list(block.before) for block in model.blocks] == [["gtp_graph"], [], [], []]
    x, states = torch.randn(2, 3, 64, 64), []
    for block in model.blocks:
        block.register_forward_hook(lambda module, args, output: states.append(output[3]))
    model(x)
    expected = token_graph(model._embed(x)[:, 1:], (4, 4), 8, "mixed")
    assert [state.keys() for state in states] == [{"gtp_graph"}] * 4
    torch.testing.assert_close(states[0]["gtp_graph"], expected)
    assert [state["gtp_graph"].shape[1] for state in states] == [16, 13, 13, 11]


def test_is_training_free_on_a_plain_vit():
    """Any ViT's weights fit, and without propagation, weights dropped or scales it is that ViT."""
    plain = timm.create_model("vit_ti16", **SMALL).eval()
    reduced = timm.create_model("vit_ti16", reduction="gtp", num_prop=2, **SMALL).eval()
    reduced.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 64, 64)
    assert reduced.token_counts == [15, 13, 11, 9]
    assert not torch.allclose(reduced(x), plain(x))
    idle = timm.create_model("vit_ti16", reduction="gtp", num_prop=0, **SMALL).eval()
    idle.load_state_dict(plain.state_dict())
    torch.testing.assert_close(idle(x), plain(x))


@pytest.mark.parametrize("graph", ["spatial", "mixed"])
def test_follows_the_grid_and_refuses_another(graph):
    own = {**SMALL, "graph": graph, "num_prop": 1}
    model = timm.create_model("gtp_ti16", **{**own, "img_size": (64, 96)}).eval()
    x = torch.randn(2, 3, 96, 64)
    model.set_input_size((96, 64))
    other = timm.create_model("gtp_ti16", **{**own, "img_size": (96, 64)}).eval()
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(x), other(x))
    dynamic = timm.create_model("gtp_ti16", dynamic_img_size=True, **own).eval()
    with pytest.raises(ValueError, match="set_input_size"):
        dynamic(x)


def test_a_semantic_graph_needs_no_grid():
    own = {**SMALL, "graph": "semantic", "num_prop": 1}
    model = timm.create_model("gtp_ti16", dynamic_img_size=True, **own).eval()
    assert model.forward_features(torch.randn(2, 3, 96, 64)).shape[1] == 25 - 4
    with pytest.raises(ValueError, match="grid_size"):
        GTP(8, 4, 0, graph="spatial")


@pytest.mark.parametrize("attention", ["softmax", SparsifiedAttention])
@pytest.mark.parametrize("class_token", [True, False])
def test_equal_patches_stay_finite(attention, class_token):
    """Ties everywhere, and no difference to be similar in."""
    model = timm.create_model(
        "gtp_ti16",
        attention=attention,
        class_token=class_token,
        global_pool="token" if class_token else "avg",
        pos_embed="none",
        **SMALL,
    )
    y = model(torch.zeros(2, 3, 64, 64))
    y.sum().backward()
    assert y.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"num_prop": -1}, "num_prop >= 0"),
        ({"num_prop": [1, 2]}, "num_prop >= 0"),
        ({"num_neighbours": 0}, "num_neighbours >= 1"),
        ({"graph": "dense"}, "graph='dense'"),
        ({"selection": "AttnMax"}, "selection='AttnMax'"),
        ({"alpha": -0.1}, "alpha >= 0"),
        ({"selection": "CLSAttnMax", "num_prefix_tokens": 0}, "no prefix token"),
    ],
)
def test_impossible_arguments_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        create_reduction("gtp", 8, 4, 0, **arguments)


@pytest.mark.parametrize("sparsity", [0, 1.5])
def test_an_impossible_sparsity_is_refused(sparsity):
    with pytest.raises(ValueError, match="sparsity"):
        timm.create_model("gtp_ti16", sparsity=sparsity, **SMALL)


def test_an_attention_without_a_map_is_refused():
    with pytest.raises(ValueError, match=r"gtp needs \['attention'\].*softmax"):
        timm.create_model("gtp_ti16", attention="hydra", **SMALL)
