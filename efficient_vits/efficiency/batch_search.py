"""The batch size at which a model is fastest, and how the end of memory is recognised."""

import errno
import gc
import re
from collections.abc import Callable

import torch

_WORTHWHILE = 1.03  # another batch size must be faster by 3 %
LONG_BATCH_SECONDS = 1.0  # a batch that takes this long is not enlarged

# What the allocators of CUDA, HIP, MPS, XPU and the CPU say, libraries on top of them, and kernels
# that can't address so many elements. Upper or lower case doesn't matter.
_EXHAUSTED = re.compile(
    r"""
    out\ of\ memory                     # CUDA, HIP, MPS, XPU
    | OUT_OF_(DEVICE_|HOST_)?(MEMORY|RESOURCES)  # XPU's runtimes
    | Invalid\ buffer\ size             # MPS, a single buffer
    | not\ enough\ memory               # the CPU allocator
    | (can't|can\s?not)\ allocate\ memory  # the CPU allocator on Linux, and the system's own words
    | bad_alloc | bad\ allocation       # C++ libraries
    | _ALLOC_FAILED | AllocFailed       # cuDNN, cuBLAS, cuFFT, MIOpen
    | unable\ to\ find\ (an\ engine|a\ valid\ cuDNN\ algorithm)  # none has room for its workspace
    | canUse32BitIndexMath | integer\ out\ of\ range | INT_MAX
    | CUDA\ error:\ invalid\ configuration\ argument  # more blocks than one launch can have
    """,
    re.IGNORECASE | re.VERBOSE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the batch is too large for memory or for a kernel's indices."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and _EXHAUSTED.search(str(error)) is not None


def attempt(seconds: Callable[[int], float], batch_size: int, device: torch.device) -> float | None:
    """Seconds of a batch of this size; None where it doesn't fit. Other errors are passed on."""
    try:
        return seconds(batch_size)
    except (RuntimeError, MemoryError, OSError) as error:
        if not is_out_of_memory(error):
            raise
    # Only here are the frames of the failed attempt gone, and with them its tensors.
    release(device)
    return None


def release(device: torch.device) -> None:
    """Gives memory that is no longer in use back to the device."""
    gc.collect()
    # torch.cuda, torch.mps and torch.xpu have this function, torch.cpu has not.
    empty_cache = getattr(getattr(torch, device.type, None), "empty_cache", None)
    if empty_cache is not None:
        empty_cache()


def fastest_batch_size(seconds: Callable[[int], float], device: torch.device) -> int:
    """Doubles the batch while it pays, then looks between the best size and its neighbours.

    Args:
        seconds: measures a batch of a size.
        device: whose memory is freed after a size that didn't fit.

    Raises:
        MemoryError, RuntimeError, OSError: a single image doesn't fit. Every other error of
            `seconds`, at any size.
    """
    best, taken = 1, seconds(1)
    while taken <= LONG_BATCH_SECONDS:
        longer = attempt(seconds, 2 * best, device)
        if longer is None or 2 * best / longer <= _WORTHWHILE * best / taken:
            break
        best, taken = 2 * best, longer
    return _refined(seconds, best, taken, device)


def _refined(seconds: Callable[[int], float], best: int, taken: float, device: torch.device) -> int:
    """The best of the sizes half way to the next powers of two, then of those half as far away."""
    speed = best / taken
    below, above = best // 4, best // 2
    for _ in range(2):
        # A best batch that is long already is not enlarged.
        sizes = [best - below] if taken > LONG_BATCH_SECONDS else [best - below, best + above]
        for size in [size for size in sizes if 0 < size != best]:
            other = attempt(seconds, size, device)
            if other is not None and size / other > _WORTHWHILE * speed:
                best, taken, speed = size, other, size / other
        below, above = below // 2, above // 2
    return best
