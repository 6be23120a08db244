"""Arithmetic that must survive half precision."""

import contextlib

import torch
from timm.layers import register_notrace_function
from torch import Tensor


@register_notrace_function
def widen(x: Tensor) -> Tensor:
    """`x` in float32, or in float64 if it is."""
    return x if x.dtype == torch.float64 else x.float()


@register_notrace_function
def sum_tokens(x: Tensor, is_causal: bool = False) -> Tensor:
    """Sum over tokens in float32 at least, (B, N, C) -> (B, 1, C).

    With `is_causal` the running sum, (B, N, C): what each token sees of those up to itself.
    """
    wide = widen(x)
    return wide.cumsum(dim=1) if is_causal else wide.sum(dim=1, keepdim=True)


def unit_vectors(x: Tensor) -> Tensor:
    """`x` over its norm along the last dimension; zero vectors stay zero.

    The bound 1e-6 is the smallest power of ten that float16 can still represent.
    """
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / norm.clamp(min=1e-6)


def without_autocast(device_type: str) -> contextlib.AbstractContextManager[object]:
    """A context in which autocast leaves dtypes alone; for routing, normalisers and FFTs."""
    if device_type == "meta":  # it has no autocast to turn off
        return contextlib.nullcontext()
    return torch.autocast(device_type, enabled=False)


@register_notrace_function
def wide_matmul(a: Tensor, b: Tensor) -> Tensor:
    """`a @ b` in float32 at least, whatever autocast says; for what is compared, not averaged."""
    a = widen(a)
    b = b.to(a.dtype)
    if torch.jit.is_scripting():
        return a @ b
    with without_autocast(a.device.type):
        return a @ b
