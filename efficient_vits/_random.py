"""Random numbers that follow from a seed alone, on any device and in any compiled form.

Generators are no tensors: they can be neither scripted nor exported. Here the i-th number is a hash
of i and the seed, so that a mechanism which draws at random repeats itself wherever it runs.
"""

import math

import torch
from torch import Tensor


def block_seed(seed: int, block: int) -> int:
    """A seed of its own for every block of a model, within 31 bits."""
    return (seed * 0x9E3779B1 + block) % 2**31


def draw_seed(seed: int, fresh: bool, device: torch.device) -> Tensor:
    """A seed of shape (1,): `seed` itself, or with `fresh` one from PyTorch's own generator."""
    if fresh:
        return torch.randint(0x7FFFFFFF, (1,), device=device)
    return torch.full((1,), seed, dtype=torch.int64, device=device)


def seeded_integers(count: int, seed: Tensor) -> Tensor:
    """`count` integers, uniform over 0 ... 2^32 - 1, as int64.

    Args:
        count: How many.
        seed: As from `draw_seed`, (1,), below 2^31.

    The hash is Thomas Mueller's for 32 bits (two rounds of shift, xor and product); no product
    leaves 63 bits.
    """
    x = torch.arange(count, device=seed.device)
    for _ in range(2):  # the hash of the counter, and that hash moved by the seed
        x = (x + seed + 1) % 0x100000000
        for _ in range(2):
            x = (x ^ (x // 65536)) * 0x45D9F3B % 0x100000000
        x = x ^ (x // 65536)
    return x


def seeded_normal(count: int, seed: Tensor) -> Tensor:
    """`count` standard normal numbers, float32, by the Box-Muller transform."""
    uniform = (seeded_integers(2 * count, seed) + 1).float() / 0x100000000  # never 0
    radius = (-2 * uniform[:count].log()).clamp(min=0).sqrt()
    return radius * (2 * math.pi * uniform[count:]).cos()
