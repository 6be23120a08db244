"""The switch MLP against a loop over tokens, and its loss against its paper's."""

import math

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import set_exportable
from torch import nn

from efficient_vits import auxiliary_loss
from efficient_vits.efficiency import count_active_parameters, count_parameters
from efficient_vits.mlp import create_mlp


def naive(mlp, x):
    """Token by token: the expert with the highest probability, and nothing else."""
    out = []
    for token in x.flatten(0, 1):
        probs = mlp.router(token).softmax(0)
        e = int(probs.argmax())
        hidden = mlp.act(mlp.fc1.weight[e] @ token + mlp.fc1.bias[e])
        y = mlp.fc2.weight[e] @ hidden + mlp.fc2.bias[e]
        p = probs[e]
        out.append(y * (p if mlp.scale_by_prob else p / p.detach()))
    return torch.stack(out).view_as(x)


def naive_with_capacity(mlp, x, capacity):
    """First come, first served; who comes too late gets nothing."""
    y, taken = naive(mlp, x).flatten(0, 1), [0] * mlp.num_experts
    out = []
    for token, full in zip(x.flatten(0, 1), y, strict=True):
        e = int(mlp.router(token).argmax())
        out.append(full if taken[e] < capacity else torch.zeros_like(full))
        taken[e] += 1
    return torch.stack(out).view_as(x)


def build(dim=6, hidden=10, **own):
    mlp = create_mlp("switch", dim, hidden, **own).double()
    with torch.no_grad():
        for p in mlp.parameters():
            p.normal_()
    return mlp


def outputs_and_gradients(forward, mlp, x):
    mlp.zero_grad()
    x.grad = None
    y = forward(x)
    (y * torch.arange(y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in mlp.parameters()]
    return [y.detach(), x.grad, *gradients]


@settings(max_examples=20, deadline=None)
@given(
    experts=st.integers(1, 6),
    tokens=st.integers(1, 9),
    scale=st.booleans(),
    dynamic=st.booleans(),
    seed=st.integers(0, 99),
)
def test_equals_its_naive_twin(experts, tokens, scale, dynamic, seed):
    torch.manual_seed(seed)
    mlp = build(num_experts=experts, scale_by_prob=scale, dynamic=dynamic)
    x = torch.randn(2, tokens, 6, dtype=torch.float64, requires_grad=True)
    fast = outputs_and_gradients(mlp, mlp, x)
    slow = outputs_and_gradients(lambda x: naive(mlp, x), mlp, x)
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b)


@settings(max_examples=30, deadline=None)
@given(
    experts=st.integers(1, 6),
    tokens=st.integers(1, 9),
    capacity_factor=st.floats(0.01, 8),
    scale=st.booleans(),
    seed=st.integers(0, 99),
)
def test_with_a_capacity_it_equals_its_naive_twin(experts, tokens, capacity_factor, scale, seed):
    torch.manual_seed(seed)
    mlp = build(num_experts=experts, scale_by_prob=scale, capacity_factor=capacity_factor)
    capacity = math.ceil(capacity_factor * 2 * tokens / experts)
    x = torch.randn(2, tokens, 6, dtype=torch.float64, requires_grad=True)
    fast = outputs_and_gradients(mlp, mlp, x)
    slow = outputs_and_gradients(lambda x: naive_with_capacity(mlp, x, capacity), mlp, x)
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b)


def test_tokens_above_the_capacity_pass_by():
    """All ten tokens want the same expert of two, which has three places."""
    mlp = build(num_experts=2, capacity_factor=0.6)
    x = torch.randn(1, 1, 6, dtype=torch.float64).expand(2, 5, 6)
    y = mlp(x).flatten(0, 1)
    assert (y == 0).all(dim=1).tolist() == [False] * 3 + [True] * 7
    torch.testing.assert_close(y[:3], naive(mlp, x).flatten(0, 1)[:3])


def test_the_balance_loss_counts_tokens_above_the_capacity():
    full, bounded = build(num_experts=4).train(), build(num_experts=4, capacity_factor=0.5).train()
    bounded.load_state_dict(full.state_dict())
    x = torch.randn(2, 9, 6, dtype=torch.float64)
    full(x), bounded(x)
    torch.testing.assert_close(auxiliary_loss(bounded), auxiliary_loss(full))


def test_with_a_capacity_shapes_are_static():
    mlp = build(num_experts=3, capacity_factor=1.25).eval()
    x = torch.randn(2, 7, 6, dtype=torch.float64)
    seen = []
    handle = mlp.act.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    y = mlp(x)
    assert seen == [(3, 6, 10)]  # ceil(1.25 * 14 / 3) places
    handle.remove()
    compiled = torch.compile(mlp, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), y)
    torch.testing.assert_close(torch.export.export(mlp, (x,)).module()(x), y)
    torch.testing.assert_close(torch.jit.script(mlp)(x), y)
    assert mlp.to("meta")(x.to("meta")).shape == y.shape


def test_a_wrong_expert_is_noticed():
    mlp, x = build(), torch.randn(2, 5, 6, dtype=torch.float64)
    expected = naive(mlp, x)
    with torch.no_grad():
        mlp.router.weight.neg_()
    with pytest.raises(AssertionError, match="not close"):
        torch.testing.assert_close(mlp(x), expected)


def test_balance_loss_is_the_papers():
    mlp, x = build(num_experts=4).train(), torch.randn(3, 7, 6, dtype=torch.float64)
    mlp(x)
    probs = mlp.router(x).softmax(-1).flatten(0, 1)
    f = torch.stack([(probs.argmax(-1) == i).double().mean() for i in range(4)])
    expected = 0.01 * 4 * sum(f[i] * probs[:, i].mean() for i in range(4))
    torch.testing.assert_close(auxiliary_loss(mlp), expected)
    auxiliary_loss(mlp).backward()
    assert mlp.router.weight.grad.abs().sum() > 0


def test_balance_loss_is_smallest_where_experts_share_equally():
    mlp = build(dim=4, num_experts=4).train()
    with torch.no_grad():
        mlp.router.bias.zero_()
        mlp.router.weight.copy_(10 * torch.eye(4))
    mlp(torch.eye(4, dtype=torch.float64)[None])
    torch.testing.assert_close(auxiliary_loss(mlp).item(), 0.01, rtol=1e-3, atol=0)
    mlp(torch.eye(4, dtype=torch.float64)[None, :1].expand(1, 4, 4))
    torch.testing.assert_close(auxiliary_loss(mlp).item(), 0.04, rtol=1e-3, atol=0)


def test_exportable_models_take_the_static_path():
    assert create_mlp("switch", 6).dynamic
    with set_exportable(True):
        assert not create_mlp("switch", 6).dynamic


def test_only_the_chosen_expert_is_run():
    """The work does not grow with the experts."""
    mlp, x = build(num_experts=5), torch.randn(2, 50, 6, dtype=torch.float64)
    seen = []
    mlp.act.register_forward_hook(lambda module, args, output: seen.append(args[0].shape))
    mlp(x)
    assert sum(shape[0] for shape in seen) == 100


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"num_experts": 0}, "num_experts >= 1"),
        ({"norm_layer": nn.LayerNorm}, "norm"),
        ({"capacity_factor": 0.0}, "capacity_factor > 0"),
        ({"capacity_factor": 1.0, "dynamic": True}, "leave out dynamic"),
    ],
)
def test_impossible_arguments_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        create_mlp("switch", 6, **arguments)


def test_a_token_meets_the_parameters_of_one_expert():
    plain = timm.create_model("vit_ti16", device="meta")
    model = timm.create_model("switch8_ti16", device="meta")
    routers = 12 * (192 * 8 + 8)
    assert count_active_parameters(model) == count_parameters(plain) + routers
