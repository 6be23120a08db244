"""EMSA against its formula, head by head."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from efficient_vits.attention import create_attention


def naive_keys(mixer, patches):
    """The tokens that keys and values are made of."""
    if mixer.sr is None:
        return patches
    B, _, C = patches.shape
    H, W = mixer.grid_size
    k, s = mixer.sr.kernel_size[0], mixer.sr.stride[0]
    padded = F.pad(patches.transpose(1, 2).reshape(B, C, H, W), [s // 2] * 4)
    reduced = [
        (padded[:, :, i : i + k, j : j + k] * mixer.sr.weight[:, 0]).sum(dim=(2, 3)) + mixer.sr.bias
        for i in range(0, padded.shape[2] - k + 1, s)
        for j in range(0, padded.shape[3] - k + 1, s)
    ]
    tokens = torch.stack(reduced, dim=1)
    mean, var = tokens.mean(-1, keepdim=True), tokens.var(-1, unbiased=False, keepdim=True)
    return (tokens - mean) / (var + 1e-5).sqrt() * mixer.sr_norm.weight + mixer.sr_norm.bias


def interacting(logits, conv):
    """Each head's logits as a mixture of all heads'."""
    heads = range(len(logits))
    return [sum(conv.weight[g, h] * logits[h] for h in heads) + conv.bias[g] for g in heads]


def normed(weights):
    """One head's weights (B, N, M), per image."""
    mean = weights.mean(dim=(1, 2), keepdim=True)
    var = weights.var(dim=(1, 2), unbiased=False, keepdim=True)
    return (weights - mean) / (var + 1e-5).sqrt()


def late(logits, conv):
    """A slip: heads interact after the softmax."""
    return [w.clamp(min=1e-30).log() for w in interacting([z.softmax(-1) for z in logits], conv)]


def naive(mixer, x, interact=interacting, norm=normed):
    P, d = mixer.num_prefix_tokens, mixer.head_dim
    patches = x[:, P:]
    q = mixer.q(patches).split(d, dim=-1)
    k, v = mixer.kv(naive_keys(mixer, patches)).chunk(2, dim=-1)
    k, v = k.split(d, dim=-1), v.split(d, dim=-1)
    logits = [a @ b.transpose(1, 2) / d**0.5 for a, b in zip(q, k, strict=True)]
    if mixer.num_heads > 1:
        weights = [norm(z.softmax(dim=-1)) for z in interact(logits, mixer.interaction)]
    else:
        weights = [z.softmax(dim=-1) for z in logits]
    y = torch.cat([w @ b for w, b in zip(weights, v, strict=True)], dim=-1)
    return torch.cat([x[:, :P], mixer.proj(y)], dim=1)


def build(grid=(4, 5), prefix=0, heads=3, **own):
    mixer = create_attention(
        "emsa", 4 * heads, num_heads=heads, grid_size=grid, num_prefix_tokens=prefix, **own
    ).double()
    with torch.no_grad():
        for p in mixer.parameters():
            p.normal_(std=0.7)
    return mixer.eval()


def tokens(grid=(4, 5), prefix=0, heads=3):
    return torch.randn(2, prefix + grid[0] * grid[1], 4 * heads, dtype=torch.float64)


@settings(max_examples=25, deadline=None)
@given(
    grid=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    prefix=st.integers(0, 2),
    heads=st.integers(1, 4),
    sr_ratio=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 99),
)
def test_equals_its_naive_twin(grid, prefix, heads, sr_ratio, seed):
    torch.manual_seed(seed)
    mixer = build(grid, prefix, heads, sr_ratio=sr_ratio)
    x = tokens(grid, prefix, heads).requires_grad_()
    target, results = torch.randn_like(x), []
    for forward in (mixer, lambda x: naive(mixer, x)):
        mixer.zero_grad()
        x.grad = None
        y = forward(x)
        (y * target).sum().backward()
        results.append([y.detach(), x.grad, *(p.grad for p in mixer.parameters())])
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow)  # float64: rounding alone


@pytest.mark.parametrize(
    "slip",
    [
        {"interact": late},
        {"interact": lambda logits, conv: logits},
        {"norm": lambda weights: weights},
    ],
)
def test_the_twin_tells_a_slip(slip):
    mixer, x = build(), tokens()
    torch.testing.assert_close(naive(mixer, x), mixer(x))
    assert not torch.allclose(naive(mixer, x, **slip), mixer(x), rtol=1e-3)


def test_a_single_patch_has_nothing_to_tell():
    """Its only weight is the mean: the instance norm makes it 0, in training too."""
    mixer, x = build(grid=(1, 1)).train(), tokens(grid=(1, 1))
    torch.testing.assert_close(mixer(x), mixer.proj.bias.expand_as(x))


@pytest.mark.parametrize(("sr_ratio", "keys"), [(1, 35), (2, 4 * 3), (4, 2 * 2), (8, 1)])
def test_keys_are_fewer_by_the_square_of_the_ratio(sr_ratio, keys):
    mixer, seen = build(grid=(7, 5), sr_ratio=sr_ratio), []
    mixer.kv.register_forward_hook(lambda module, args, output: seen.append(output.shape[1]))
    mixer(tokens(grid=(7, 5)))
    assert seen == [keys]


def test_a_call_may_give_its_own_grid():
    mixer, x = build(), tokens()
    turned = mixer(x, None, False, (5, 4))
    assert not torch.allclose(turned, mixer(x))
    mixer.set_grid_size((5, 4))
    assert torch.equal(mixer(x), turned)
    with pytest.raises(AssertionError, match="set_grid_size"):
        mixer(x, None, False, (5, 5))


@pytest.mark.parametrize("sr_ratio", [0, 3, -2])
def test_ratios_that_do_not_fit_are_refused(sr_ratio):
    with pytest.raises(ValueError, match=str(sr_ratio)):
        build(sr_ratio=sr_ratio)
