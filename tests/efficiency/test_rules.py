"""Every rule against its formula, on operators that are really traced."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from efficient_vits.efficiency import FlopCount, count_flops
from efficient_vits.efficiency.rules import FREE, MATRIX_PRODUCTS, RULES

# Distinct sizes: a rule that takes the wrong dimension gives another number.
B, C, H, W = 1, 2, 6, 5
NUMEL = B * C * H * W


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> object:
        return self.function(x)


def count(function: Callable[[Tensor], object], *shape: int) -> FlopCount:
    result = count_flops(Function(function), shape or (C, H, W))
    assert result.uncounted == {}
    return result


def ones(*shape: int) -> Tensor:
    return torch.ones(shape)


INDEX = torch.tensor([[[[0, 1, 1]]]])

CASES: dict[str, tuple[Callable[[Tensor], object], int]] = {
    # matrix products
    "linear": (lambda x: F.linear(x, ones(7, W), ones(7)), NUMEL * 7),
    "matmul": (lambda x: x @ ones(W, 7), NUMEL * 7),
    "matmul, broadcast left": (lambda x: ones(7, H) @ x, C * 7 * H * W),
    "matmul, vector": (lambda x: x @ ones(W), NUMEL),
    "dot": (lambda x: torch.dot(x.flatten(), x.flatten()), NUMEL),
    "mv": (lambda x: torch.mv(x[0, 0], ones(W)), H * W),
    "bmm": (lambda x: torch.bmm(x[0], ones(C, W, 7)), NUMEL * 7),
    "addmm": (lambda x: torch.addmm(ones(7), x[0, 0], ones(W, 7)), H * W * 7),
    "baddbmm": (lambda x: torch.baddbmm(ones(1, 1, 7), x[0], ones(C, W, 7)), NUMEL * 7),
    "addbmm": (lambda x: torch.addbmm(ones(H, 7), x[0], ones(C, W, 7)), NUMEL * 7),
    "tensordot": (lambda x: torch.tensordot(x, ones(H, W, 7), dims=([2, 3], [0, 1])), NUMEL * 7),
    "einsum": (lambda x: torch.einsum("bchw,wk->bchk", x, ones(W, 7)), NUMEL * 7),
    "conv2d": (lambda x: F.conv2d(x, ones(7, C, 3, 3), ones(7)), 7 * 4 * 3 * C * 9),
    "conv2d, same": (lambda x: F.conv2d(x, ones(7, C, 3, 3), padding="same"), 7 * 30 * C * 9),
    "conv2d, depthwise": (lambda x: F.conv2d(x, ones(C, 1, 3, 3), groups=C), C * 4 * 3 * 9),
    "conv1d": (lambda x: F.conv1d(x[0], ones(7, H, 3)), C * 7 * 3 * H * 3),
    "conv_transpose2d": (lambda x: F.conv_transpose2d(x, ones(C, 7, 2, 2), stride=2), NUMEL * 28),
    # elementwise
    "add": (lambda x: x + 1, NUMEL),
    "add, broadcast": (lambda x: x[:, :, :1] + x[..., :1], NUMEL),
    "in place": (lambda x: x.clone().add_(1).mul_(2).div_(3), 3 * NUMEL),
    "rsub": (lambda x: 1 - x, NUMEL),
    "abs": (torch.abs, NUMEL),
    "reciprocal": (torch.reciprocal, NUMEL),
    "pow": (lambda x: x**2, 3 * NUMEL),
    "sqrt": (torch.sqrt, NUMEL),
    "sin": (torch.sin, NUMEL),
    "exp": (torch.exp, 20 * NUMEL),
    "log": (torch.log, 20 * NUMEL),
    "erf": (torch.erf, 20 * NUMEL),
    "softmax": (lambda x: x.softmax(1), 5 * NUMEL),
    "log_softmax": (lambda x: x.log_softmax(1), 5 * NUMEL),
    "gelu": (F.gelu, 8 * NUMEL),
    "sigmoid": (torch.sigmoid, 22 * NUMEL),
    "tanh": (torch.tanh, 22 * NUMEL),
    "silu": (F.silu, 23 * NUMEL),
    "elu": (F.elu, 22 * NUMEL),
    "softplus": (F.softplus, 41 * NUMEL),
    "leaky_relu": (F.leaky_relu, NUMEL),
    "hardswish": (F.hardswish, NUMEL),
    "hardsigmoid": (F.hardsigmoid, NUMEL),
    "softshrink": (F.softshrink, NUMEL),
    "glu": (lambda x: F.glu(x, 1), 23 * NUMEL // 2),
    "lerp": (lambda x: torch.lerp(x, x, 0.5), 3 * NUMEL),
    "addcmul": (lambda x: torch.addcmul(x, x, x), 2 * NUMEL),
    "outer": (lambda x: torch.outer(x[0, 0, 0], ones(7)), W * 7),
    # normalisation
    "layer_norm": (lambda x: F.layer_norm(x, (W,), ones(W), ones(W)), 5 * NUMEL),
    "layer_norm, plain": (lambda x: F.layer_norm(x, (W,)), 4 * NUMEL),
    "group_norm": (lambda x: F.group_norm(x, 2, ones(C), ones(C)), 5 * NUMEL),
    "batch_norm": (lambda x: F.batch_norm(x, ones(C), ones(C), ones(C), ones(C)), 2 * NUMEL),
    "batch_norm, plain": (lambda x: F.batch_norm(x, ones(C), ones(C)), NUMEL),
    "batch_norm, of the batch": (
        lambda x: F.batch_norm(x, None, None, ones(C), ones(C), training=True),
        5 * NUMEL,
    ),
    "instance_norm": (F.instance_norm, 4 * NUMEL),
    "rms_norm": (lambda x: F.rms_norm(x, (W,), ones(W)), 4 * NUMEL),
    # reductions
    "sum": (lambda x: x.sum(2), NUMEL - C * W),
    "sum, all": (lambda x: x.sum(), NUMEL - 1),
    "mean": (lambda x: x.mean((2, 3)), NUMEL),
    "cumsum": (lambda x: x.cumsum(2), NUMEL - C * W),
    "cumsum, negative": (lambda x: x.cumsum(-1), NUMEL - C * H),
    "norm": (lambda x: x.norm(dim=2), 2 * NUMEL - C * W),
    "vector_norm": (lambda x: torch.linalg.vector_norm(x, dim=1), 2 * NUMEL - H * W),
    "linalg.norm": (lambda x: torch.linalg.norm(x, dim=1), 2 * NUMEL - H * W),
    "logsumexp": (lambda x: x.logsumexp(2), 22 * NUMEL + 20 * C * W),
    "var": (lambda x: x.var(2), 4 * NUMEL),
    "std": (lambda x: x.std(), 4 * NUMEL),
    "var_mean": (lambda x: torch.var_mean(x, 2), 4 * NUMEL),
    "cdist": (lambda x: torch.cdist(x, ones(7, W)), 3 * W * C * H * 7),
    # by index
    "scatter_add": (lambda x: x.scatter_add(3, INDEX, x), 3),
    "scatter_reduce, sum": (lambda x: x.scatter_reduce(3, INDEX, x, "sum"), 3),
    "scatter_reduce, amax": (lambda x: x.scatter_reduce(3, INDEX, x, "amax"), 0),
    "scatter": (lambda x: x.scatter(3, INDEX, x), 0),
    "scatter, add": (lambda x: x.scatter(3, INDEX, x, reduce="add"), 3),
    "index_add": (lambda x: x.index_add(1, torch.tensor([0]), x[:, :1]), H * W),
    "index_put": (lambda x: x.index_put((torch.tensor([0]),), x), 0),
    "index_put, adds": (
        lambda x: x.index_put((torch.tensor([0]),), x, accumulate=True),
        NUMEL,
    ),
    # Fourier
    "fft2": (lambda x: torch.fft.fft2(x).real, int(5 * NUMEL * math.log2(H * W))),
    "fft": (lambda x: torch.fft.fft(x, dim=1).real, int(5 * NUMEL * math.log2(C))),
    "fftn": (lambda x: torch.fft.fftn(x, dim=(1, 2)).real, int(5 * NUMEL * math.log2(C * H))),
    "rfft2": (lambda x: torch.fft.rfft2(x, dim=(1, 2)).real, int(2.5 * NUMEL * math.log2(C * H))),
    "rfft, traced length": (
        lambda x: torch.fft.rfft(x, n=x.shape[2] + 2, dim=3).real,
        int(2.5 * C * H * 8 * math.log2(8)),
    ),
    "irfft2": (
        lambda x: torch.fft.irfft2(x.to(torch.complex64), s=(H, 8)),
        int(2.5 * C * H * 8 * math.log2(8 * H)),
    ),
    # pooling and resampling
    "avg_pool2d": (lambda x: F.avg_pool2d(x, 2, 1), C * 5 * 4 * 4),
    "avg_pool2d, everything": (lambda x: F.avg_pool2d(x, x.shape[2:]), NUMEL),
    "avg_pool1d": (lambda x: F.avg_pool1d(x[0], 3, 1), C * H * 3 * 3),
    "adaptive_avg_pool2d": (lambda x: F.adaptive_avg_pool2d(x, 1), NUMEL),
    "max_pool2d": (lambda x: F.max_pool2d(x, 2), 0),
    "nearest": (lambda x: F.interpolate(x, scale_factor=2), 0),
    "bilinear": (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), 4 * 4 * NUMEL),
    # From 6 x 5 to 3 x 5: 5 columns of 6 with 2 taps, then 3 x 5 with 4.
    "bilinear, antialias": (
        lambda x: F.interpolate(x, size=(3, 5), mode="bilinear", antialias=True),
        C * (6 * 5 * 2 + 3 * 5 * 4),
    ),
    "grid_sample": (
        lambda x: F.grid_sample(x, torch.zeros(1, 3, 7, 2), align_corners=False),
        4 * C * 3 * 7,
    ),
    # free
    "relu": (F.relu, 0),
    "moves": (lambda x: x.transpose(1, 2).reshape(B, -1).roll(1, 1).flip(1).contiguous(), 0),
    "compares": (lambda x: x.masked_fill(x > 0, 0).clamp(0, 1).topk(2).values.sort().values, 0),
    "integers": (lambda x: x[:, (torch.arange(C) + 1) * 2 % C], 0),
}


@pytest.mark.parametrize("name", CASES)
def test_cost(name: str) -> None:
    function, expected = CASES[name]
    assert count(function).total == expected


def test_only_products_and_convolutions_are_macs() -> None:
    result = count(lambda x: F.conv2d(x, ones(7, C, 1, 1)) @ ones(W, 3) + 1)
    products = 7 * C * H * W + 7 * H * W * 3
    assert (result.macs, result.total) == (products, products + 7 * H * 3)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(sizes=st.tuples(*[st.integers(1, 5)] * 5), masked=st.booleans(), extra_batch=st.booleans())
def test_fused_attention_costs_what_its_plain_code_costs(
    sizes: tuple[int, ...], masked: bool, extra_batch: bool
) -> None:
    heads, tokens, key_tokens, dim, value_dim = sizes
    lead = (1, 2, heads) if extra_batch else (1, heads)
    key, value = ones(*lead, key_tokens, dim), ones(*lead, key_tokens, value_dim)
    mask = ones(tokens, key_tokens) if masked else None

    def fused(q: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, key, value, attn_mask=mask)

    def plain(q: Tensor) -> Tensor:
        scores = (q * dim**-0.5) @ key.transpose(-2, -1)
        return (scores if mask is None else scores + mask).softmax(-1) @ value

    assert count(fused, *lead[1:], tokens, dim) == count(plain, *lead[1:], tokens, dim)


def test_causal_attention_is_dense_with_a_mask() -> None:
    q, n = ones(1, 3, 6, 4), 3 * 6 * 6
    result = count(lambda x: F.scaled_dot_product_attention(q, q, q, is_causal=True))
    assert result.by_operator == {
        "add": n,
        "matmul": 2 * n * 4,
        "mul": 3 * 6 * 4,
        "softmax": 5 * n,
    }


@settings(max_examples=20, deadline=None, derandomize=True)
@given(shape=st.lists(st.integers(1, 5), min_size=1, max_size=3), dim=st.integers(-4, 3))
def test_sums_and_running_sums_cost_their_additions(shape: list[int], dim: int) -> None:
    size = (1, *shape)
    dim = dim % len(size)
    lanes = math.prod(size) // size[dim]
    additions = lanes * (size[dim] - 1)
    assert count(lambda x: x.sum(dim), *shape).total == additions
    assert count(lambda x: x.cumsum(dim), *shape).total == additions


def test_the_table_contradicts_itself_nowhere() -> None:
    assert not FREE & RULES.keys()
    assert RULES.keys() >= MATRIX_PRODUCTS
