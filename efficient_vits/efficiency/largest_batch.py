"""The largest batch that fits into a given memory, without running anything."""

import functools
from collections.abc import Callable, Sequence

from torch import nn

from efficient_vits.efficiency.estimate import estimate_memory
from efficient_vits.efficiency.memory import MemoryUse
from efficient_vits.efficiency.named import build

_MOST_IMAGES = 2**20
_LEAP = 16  # a larger guess than so many times what is known to fit is not worth its while


def largest_batch(
    model: nn.Module | str,
    memory: float,
    *,
    input_size: Sequence[int] | None = None,
    training: bool = True,
    optimizer: str | None = None,
    amp: bool | str | None = True,
    grad_checkpointing: bool = False,
    fused_attention: bool | None = None,
    device: str = "cuda",
) -> MemoryUse | None:
    """The estimate at the largest batch whose estimate is at most `memory`.

    Args:
        model: as `estimate_memory` takes it, and so are the arguments that are not here.
        memory: bytes that there are, such as ``24e9``.

    Returns:
        What `estimate_memory` gives at that batch size, which is 2^20 at most; None where not even
        one image fits.

    Raises:
        TypeError, ValueError: `memory` is not a positive number of bytes, or as `estimate_memory`.
    """
    if not memory > 0:
        raise ValueError(f"memory is a positive number of bytes, got {memory!r}")
    if isinstance(model, str):
        model = build(model, input_size, meta=True)
    estimate = functools.partial(
        estimate_memory,
        model,
        input_size=input_size,
        training=training,
        optimizer=optimizer,
        amp=amp,
        grad_checkpointing=grad_checkpointing,
        fused_attention=fused_attention,
        device=device,
    )
    return _search(estimate, memory)


def _search(estimate: Callable[[int], MemoryUse], memory: float) -> MemoryUse | None:
    """Memory is the highest of a few straight lines over the batch size, one for each moment."""
    below, above = estimate(1), _MOST_IMAGES + 1
    if below.peak_bytes > memory:
        return None
    slope, halve = 0.0, False
    while above - below.batch_size > 1:
        room = _LEAP * below.batch_size
        if slope > 0:
            room = min(room, int((memory - below.peak_bytes) / slope))
        guess = min(below.batch_size + max(room, 1), above - 1)
        if halve:
            guess = (below.batch_size + above) // 2
        use = estimate(guess)
        if use.peak_bytes <= memory:
            # The last line is the steepest, so a guess along it that fits is seldom too small.
            slope = (use.peak_bytes - below.peak_bytes) / (guess - below.batch_size)
            below, halve = use, False
        else:
            above, halve = guess, guess - below.batch_size > 1
    return below
