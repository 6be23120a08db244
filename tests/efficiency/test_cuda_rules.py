"""CUDA's rules, where tensors are on the CPU."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from efficient_vits.efficiency.cuda_rules import FLOAT32_OPERATORS, CudaRules, fused_attention


@pytest.mark.parametrize(
    ("call", "dtype"),
    [
        (lambda x: x.softmax(-1), torch.float32),
        (lambda x: F.softmax(x, dim=-1), torch.float32),
        (lambda x: F.layer_norm(x, x.shape[-1:]), torch.float32),
        (lambda x: x**2, torch.float32),
        (lambda x: 1 / x, torch.float32),
        (lambda x: torch.sum(x), torch.float32),
        (lambda x: x.exp(), torch.float32),
        (lambda x: x + x, torch.bfloat16),
        (lambda x: F.gelu(x), torch.bfloat16),
        (lambda x: x @ x.T, torch.bfloat16),
    ],
)
def test_autocast_widens_what_cuda_widens(call, dtype: torch.dtype) -> None:
    x = torch.ones(4, 4, dtype=torch.bfloat16)
    with CudaRules(fused_attention=True):
        assert call(x).dtype == torch.bfloat16  # without autocast nothing is widened
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert call(x).dtype == dtype


def test_operators_that_torch_has() -> None:
    spelled = [name for name in FLOAT32_OPERATORS if not name.startswith("r")]
    places = (torch, Tensor, F)
    assert [name for name in spelled if not any(hasattr(place, name) for place in places)] == []


def test_fused_attention_keeps_no_matrix() -> None:
    saved: list[Tensor] = []
    q, k, v = (torch.ones(2, 3, n, 8, requires_grad=True) for n in (50, 60, 60))
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t)
    with CudaRules(fused_attention=True), hooks:
        out = F.scaled_dot_product_attention(q, k, v)
    assert out.shape == (2, 3, 50, 8)
    assert all(tensor.numel() < 2 * 3 * 50 * 60 for tensor in saved)
    assert sorted(t.numel() for t in saved) == sorted(
        [q.numel(), k.numel(), v.numel(), out.numel(), 2 * 3 * 50]
    )
    out.sum().backward()
    assert (q.grad.shape, k.grad.shape, v.grad.shape) == (q.shape, k.shape, v.shape)


def test_a_learned_mask_gets_a_gradient_of_its_shape() -> None:
    q = torch.ones(2, 3, 10, 8, requires_grad=True)
    mask = torch.zeros(1, 3, 10, 10, requires_grad=True)
    fused_attention(q, q, q, mask).sum().backward()
    assert mask.grad is not None
    assert mask.grad.shape == mask.shape


def test_unfused_attention_is_left_alone() -> None:
    q = torch.rand(2, 3, 10, 8)
    expected = F.scaled_dot_product_attention(q, q, q)
    with CudaRules(fused_attention=False):
        torch.testing.assert_close(F.scaled_dot_product_attention(q, q, q), expected)
