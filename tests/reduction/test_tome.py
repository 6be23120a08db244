"""ToMe against a version in plain loops, and against what merging means."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from efficient_vits.reduction import create_reduction
from efficient_vits.reduction.tome import merge, merges_per_block


def naive_merge(x, size, keys, r, prefix):
    """One image, (N, C), (N), (N, d): token by token."""
    n = len(x)
    r = min(r, (n - prefix) // 2)
    if r == 0:
        return x, size
    a = [i for i in range(prefix, n) if i % 2 == 0]
    b = [i for i in range(prefix, n) if i % 2 == 1]
    unit = [k / k.pow(2).sum().sqrt() for k in keys]
    best = {i: max(b, key=lambda j: float(unit[i] @ unit[j])) for i in a}
    ranked = sorted(best, key=lambda i: -float(unit[i] @ unit[best[i]]))
    merged = ranked[:r]
    groups = {j: [j, *(i for i in merged if best[i] == j)] for j in b}
    order = [[i] for i in range(prefix)]
    order += [[i] for i in a if i not in merged] + [groups[j] for j in b]
    tokens = [sum(size[i] * x[i] for i in g) / sum(size[i] for i in g) for g in order]
    return torch.stack(tokens), torch.stack([sum(size[i] for i in g) for g in order])


@settings(max_examples=40, deadline=None)
@given(
    patches=st.integers(1, 14),
    prefix=st.integers(0, 3),
    r=st.integers(0, 9),
    seed=st.integers(0, 999),
)
def test_equals_its_naive_twin(patches, prefix, r, seed):
    torch.manual_seed(seed)
    n = prefix + patches
    x = torch.randn(1, n, 5, dtype=torch.float64, requires_grad=True)
    keys = torch.randn(1, n, 3, dtype=torch.float64)
    size = torch.randint(1, 9, (1, n, 1)).float()
    y, new_size, _ = merge(x, size, None, keys, r, prefix)
    expected, expected_size = naive_merge(x[0], size[0, :, 0].double(), keys[0], r, prefix)
    torch.testing.assert_close(y[0], expected)
    torch.testing.assert_close(new_size[0, :, 0].double(), expected_size)
    weights = torch.randn_like(y)
    (fast,) = torch.autograd.grad((y * weights).sum(), x)
    (slow,) = torch.autograd.grad((expected * weights[0]).sum(), x)
    torch.testing.assert_close(fast, slow)


@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_after_many_merges_a_token_is_the_mean_of_its_patches(prefix):
    patches = torch.randn(2, prefix + 24, 6, dtype=torch.float64)
    x, size = patches, None
    source = torch.arange(prefix, prefix + 24).expand(2, -1)
    for _ in range(4):
        x, size, source = merge(x, size, source, x, 5, prefix)
    assert x.shape[1] == prefix + 24 - 5 - 5 - 5 - 4  # half of the last 9 at most
    assert torch.equal(x[:, :prefix], patches[:, :prefix])
    for image in range(2):
        for token in range(prefix, x.shape[1]):
            group = patches[image, prefix:][source[image] == token]
            torch.testing.assert_close(x[image, token], group.mean(0))
            assert len(group) == size[image, token, 0]


def test_the_best_matches_are_merged_first():
    keys = torch.eye(6, dtype=torch.float64)[None]
    keys[0, 2], keys[0, 3] = keys[0, 5], keys[0, 5]  # tokens 2, 3 and 5 are alike, 2 is in set A
    x = torch.arange(6.0, dtype=torch.float64)[None, :, None]
    y, size, _ = merge(x, None, None, keys, 1, 0)
    assert sorted(y[0, :, 0].tolist()) in ([0, 1, 2.5, 4, 5], [0, 1, 3, 3.5, 4])
    assert sorted(size[0, :, 0].tolist()) == [1, 1, 1, 1, 2]


def test_zero_keys_are_no_division_by_zero():
    x = torch.randn(1, 9, 4, requires_grad=True)
    y, _, _ = merge(x, None, None, torch.zeros(1, 9, 3), 3, 1)
    y.sum().backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(
    ("r", "expected"), [(3, [3, 3, 3]), ([5, 1], [5, 1, 0]), ((), [0, 0, 0]), (0, [0, 0, 0])]
)
def test_r_is_a_number_or_one_per_block(r, expected):
    assert merges_per_block(r, 3) == expected
    active = [create_reduction("tome", 8, 3, i, r=r).active for i in range(3)]
    assert active == [n > 0 for n in expected]


@pytest.mark.parametrize("r", [-1, [1, -2], [1, 2, 3, 4], [1.5]])
def test_an_impossible_r_is_refused(r):
    with pytest.raises(ValueError, match="tome takes r >= 0"):
        merges_per_block(r, 3)


@pytest.mark.parametrize(
    ("r", "inflect", "expected"),
    [
        (8, 0.0, [8] * 12),
        (8, -1.0, [16, 14, 13, 11, 10, 8, 7, 5, 4, 2, 1, 0]),
        (8, 1.0, [0, 1, 2, 4, 5, 7, 8, 10, 11, 13, 14, 16]),
        (6, -0.5, [9, 8, 7, 7, 6, 6, 5, 5, 4, 4, 3, 3]),
    ],
)
def test_a_slope_moves_merging_to_early_or_late_blocks(r, inflect, expected):
    assert merges_per_block(r, 12, inflect) == expected


@pytest.mark.parametrize(("r", "inflect"), [(8, 1.5), (8, -2.0), ([8, 8, 8], 0.5)])
def test_a_slope_that_is_none_is_refused(r, inflect):
    with pytest.raises(ValueError, match="inflect"):
        merges_per_block(r, 3, inflect)
