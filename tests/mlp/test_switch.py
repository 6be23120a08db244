"""The switch MLP against a loop over tokens, and its loss against its paper's."""

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
    [({"num_experts": 0}, "num_experts >= 1"), ({"norm_layer": nn.LayerNorm}, "norm")],
)
def test_impossible_arguments_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        create_mlp("switch", 6, **arguments)


def test_a_token_meets_the_parameters_of_one_expert():
    plain = timm.create_model("vit_ti16", device="meta")
    model = timm.create_model("switch8_ti16", device="meta")
    routers = 12 * (192 * 8 + 8)
    assert count_active_parameters(model) == count_parameters(plain) + routers
