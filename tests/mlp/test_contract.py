"""What every registered MLP block must do; new ones are picked up by name."""

import copy

import pytest
import torch

from efficient_vits import auxiliary_loss
from efficient_vits.mlp import create_mlp, list_mlps, mlp_traits

DIM, HIDDEN = 16, 24
NAMES = list_mlps()


def build(name, **arguments):
    return create_mlp(name, DIM, HIDDEN, **arguments).eval()


@pytest.mark.parametrize("name", NAMES)
def test_works_on_each_token_on_its_own(name):
    mlp, x = build(name).double(), torch.randn(2, 7, DIM, dtype=torch.float64)
    y = mlp(x)
    assert y.shape == x.shape
    order = torch.randperm(7)
    torch.testing.assert_close(mlp(x[:, order]), y[:, order])
    torch.testing.assert_close(torch.cat([mlp(token) for token in x.split(1, dim=1)], dim=1), y)
    assert not torch.allclose(y[:, 0], y[:, 1])


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_gets_a_gradient(name):
    mlp = build(name).train()
    mlp(torch.randn(1, 1, DIM)).square().sum().backward()  # one token: not every expert sees one
    assert [n for n, p in mlp.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_round_trip(name):
    first, second, x = build(name), build(name), torch.randn(2, 5, DIM)
    with torch.no_grad():
        for p in first.parameters():
            p.normal_()
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(x), second(x))


@pytest.mark.parametrize("name", NAMES)
def test_can_be_copied_after_a_training_step(name):
    mlp, x = build(name).train(), torch.randn(2, 5, DIM)
    mlp(x).sum().backward()
    twin = copy.deepcopy(mlp).eval()
    assert torch.equal(twin(x), mlp.eval()(x))


@pytest.mark.parametrize("name", NAMES)
def test_device_and_dtype_arguments_reach_every_tensor(name):
    mlp = build(name, device="meta", dtype=torch.bfloat16)
    for tensor in [*mlp.parameters(), *mlp.buffers()]:
        assert tensor.is_meta
        assert tensor.dtype == torch.bfloat16
    assert mlp(torch.randn(2, 5, DIM, device="meta", dtype=torch.bfloat16)).is_meta


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_stays_finite(name, dtype):
    mlp, x = build(name).train(), (30 * torch.randn(2, 5, DIM)).requires_grad_()
    with torch.autocast("cpu", dtype):
        y = mlp(x)
    (y.float().sum() + auxiliary_loss(mlp)).backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in mlp.parameters())
    plain = build(name).to(dtype)
    assert plain(x.detach().to(dtype)).dtype == dtype


@pytest.mark.parametrize("name", NAMES)
def test_leaves_a_loss_term_where_it_declares_one(name):
    mlp, x = build(name).train(), torch.randn(2, 5, DIM)
    mlp(x)
    assert bool(auxiliary_loss(mlp) != 0) == mlp_traits(name).auxiliary_loss
    mlp.eval()(x)
    assert auxiliary_loss(mlp) == 0


@pytest.mark.parametrize("name", NAMES)
def test_scripts(name):
    mlp, x = build(name), torch.randn(2, 5, DIM)
    torch.testing.assert_close(torch.jit.script(mlp)(x), mlp(x))
