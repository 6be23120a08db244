"""Routing attention against loops over clusters, its centroids and its loss."""

import copy
import subprocess
import sys

import pytest
import torch
from einops import rearrange
from hypothesis import given, settings
from hypothesis import strategies as st

from efficient_vits import auxiliary_loss
from efficient_vits.attention import create_attention


def build(dim=12, num_heads=2, grid=(3, 4), **arguments):
    arguments = {"num_prefix_tokens": 1, "grid_size": grid, **arguments}
    return create_attention("routing", dim, num_heads=num_heads, **arguments).double().eval()


def split(mixer, x):
    return rearrange(mixer.qkv(x), "b n (s h d) -> s b h n d", s=3, h=mixer.num_heads)


def unit(z):
    return z / z.norm(dim=-1, keepdim=True)


def naive(mixer, x):
    """Cluster by cluster; every token takes the mean of what its clusters say."""
    q, k, v = split(mixer, x)
    clusters, N = mixer.centroids.shape[1], x.shape[1]
    w = -(-N // clusters)
    y = []
    for b in range(len(x)):
        for h in range(mixer.num_heads):
            said = [[] for _ in range(N)]
            for centroid in mixer.centroids[h]:
                queries = (unit(q[b, h]) @ centroid).argsort(descending=True)[:w]
                keys = (unit(k[b, h]) @ centroid).argsort(descending=True)[:w]
                for n in queries.tolist():
                    weights = (q[b, h, n] @ k[b, h, keys].T / mixer.head_dim**0.5).softmax(-1)
                    said[n].append(weights @ v[b, h, keys])
            nobody = torch.zeros_like(v[b, h, 0])
            y.append(torch.stack([sum(s, nobody) / (len(s) + 1e-5) for s in said]))
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
    head_dim=st.integers(2, 6),
    tokens=st.integers(1, 19),
    clusters=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_equals_its_naive_twin(heads, head_dim, tokens, clusters, seed):
    torch.manual_seed(seed)
    mixer = build(heads * head_dim, heads, num_clusters=clusters)
    x = torch.randn(2, tokens, heads * head_dim, dtype=torch.float64, requires_grad=True)
    fast = outputs_and_gradients(mixer, mixer, x)
    slow = outputs_and_gradients(lambda x: naive(mixer, x), mixer, x)
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b)


def test_other_centroids_are_noticed():
    mixer, x = build(), torch.randn(2, 13, 12, dtype=torch.float64)
    expected = naive(mixer, x)
    mixer.centroids.neg_()
    with pytest.raises(AssertionError, match="not close"):
        torch.testing.assert_close(mixer(x), expected)


def expected_centroids(mixer, x):
    """Means of the unit queries and keys nearest to each centroid, made unit vectors."""
    q, k, _ = split(mixer, x)
    new = mixer.centroids.clone()
    for h, centroids in enumerate(mixer.centroids):
        units = unit(torch.cat([q[:, h], k[:, h]], dim=1)).flatten(0, 1)
        nearest = (units @ centroids.T).argmax(-1)
        for c in nearest.unique():
            mean = unit(units[nearest == c].sum(0))
            new[h, c] = mixer.decay * centroids[c] + (1 - mixer.decay) * mean
    return new


def test_centroids_move_in_the_backward_pass_of_training_and_nowhere_else():
    mixer, x = build(decay=0.7), torch.randn(2, 13, 12, dtype=torch.float64)
    before = mixer.centroids.clone()
    mixer(x).sum().backward()
    with torch.no_grad():
        mixer.train()(x)
    assert torch.equal(mixer.centroids, before)
    with torch.no_grad():
        expected = expected_centroids(mixer, x)
    y = mixer(x)
    assert torch.equal(mixer.centroids, before)
    y.sum().backward()
    # Sums are in float32.
    torch.testing.assert_close(mixer.centroids, expected, atol=1e-6, rtol=1e-6)
    assert not torch.allclose(mixer.centroids, before, atol=1e-2)


def test_a_compiled_model_moves_them_too():
    mixer, x = build(decay=0.7).train(), torch.randn(2, 13, 12, dtype=torch.float64)
    eager = copy.deepcopy(mixer)
    eager(x).sum().backward()
    torch._dynamo.reset()
    torch.compile(mixer, backend="eager", fullgraph=True)(x).sum().backward()
    torch.testing.assert_close(mixer.centroids, eager.centroids)


def test_commitment_loss_is_the_distance_to_the_nearest_centroid():
    mixer, x = build(commitment=0.5).train(), torch.randn(2, 13, 12, dtype=torch.float64)
    mixer(x)
    q, k, _ = split(mixer, x)
    units = unit(torch.cat([q, k], dim=2))
    squares = []
    for h, centroids in enumerate(mixer.centroids):
        nearest = centroids[(units[:, h] @ centroids.T).argmax(-1)]
        squares.append((units[:, h] - nearest) ** 2)
    torch.testing.assert_close(auxiliary_loss(mixer), 0.5 * torch.stack(squares).mean())
    auxiliary_loss(mixer).backward()
    weight = mixer.qkv.weight.grad.chunk(3)
    assert weight[0].abs().sum() > 0
    assert weight[1].abs().sum() > 0
    assert weight[2].abs().sum() == 0
    mixer.eval()(x)
    assert auxiliary_loss(mixer) == 0


RANK = """
import sys, torch, torch.distributed as dist
from efficient_vits.attention import create_attention

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
torch.manual_seed(0)
mixer = create_attention("routing", 12, num_heads=2, grid_size=(3, 4), decay=0.5).double().train()
x = torch.randn(2, 13, 12, dtype=torch.float64)
mixer(x[rank : rank + 1]).sum().backward()
torch.save(mixer.centroids, f"{folder}/{rank}.pt")
dist.destroy_process_group()
"""


def test_all_processes_move_them_alike(tmp_path):
    command = [sys.executable, "-c", RANK]
    ranks = [
        subprocess.Popen([*command, str(rank), str(tmp_path)], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    errors = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], errors
    torch.manual_seed(0)
    mixer = build(decay=0.5).train()
    mixer(torch.randn(2, 13, 12, dtype=torch.float64)).sum().backward()
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), mixer.centroids)


@pytest.mark.parametrize(("grid", "clusters"), [((14, 14), 15), ((24, 24), 25), ((1, 1), 2)])
def test_there_are_about_as_many_clusters_as_tokens_in_one(grid, clusters):
    assert build(grid=grid).centroids.shape[1] == clusters


def test_clusters_follow_the_grid_unless_they_were_chosen():
    mixer = build(grid=(3, 4))
    first = mixer.centroids.clone()
    length = first.norm(dim=-1)
    mixer.set_grid_size((6, 10))
    assert mixer.centroids.shape == (2, 8, 6)
    torch.testing.assert_close(mixer.centroids.norm(dim=-1), torch.ones(2, 8).double())
    assert mixer(torch.randn(1, 61, 12, dtype=torch.float64)).shape == (1, 61, 12)
    other = build(grid=(6, 10))
    torch.testing.assert_close(other.resample_parameter("centroids", first), mixer.centroids)
    assert length.shape == (2, 4)
    chosen = build(num_clusters=3)
    chosen.set_grid_size((6, 10))
    assert chosen.centroids.shape == (2, 3, 6)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"num_clusters": 0}, "num_clusters >= 1"),
        ({"grid_size": None}, "num_clusters, or grid_size"),
        ({"decay": 1.5}, "decay"),
    ],
)
def test_impossible_arguments_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        build(**arguments)
