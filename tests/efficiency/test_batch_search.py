import errno
from collections.abc import Callable

import pytest
import torch

from efficient_vits.efficiency.batch_search import (
    attempt,
    fastest_batch_size,
    is_out_of_memory,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("HIP out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GB)"),
        RuntimeError("Invalid buffer size: 12.50 GiB"),
        RuntimeError("XPU out of memory. Tried to allocate 1.00 GiB"),
        RuntimeError(
            "Native API failed. Native API returns: 39 (UR_RESULT_ERROR_OUT_OF_RESOURCES)"
        ),
        RuntimeError("level_zero backend failed: UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("bad allocation"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"),
        RuntimeError("MIOpen Error: miopenStatusAllocFailed"),
        RuntimeError("FIND was unable to find an engine to execute this computation"),
        RuntimeError("Unable to find a valid cuDNN algorithm to run convolution"),
        RuntimeError("Expected canUse32BitIndexMath(input) && ... to be true, but got false."),
        RuntimeError("integer out of range"),
        RuntimeError("upsample only supports output tensors with less than INT_MAX elements"),
        RuntimeError("CUDA error: invalid configuration argument"),
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
    ids=str,
)
def test_exhausted_memory_is_recognised(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), MemoryError()], ids=repr)
def test_a_batch_that_is_too_large_ends_the_search(error: Exception) -> None:
    def seconds(batch_size: int) -> float:
        if batch_size > 8:
            raise error
        return 0.5

    assert fastest_batch_size(seconds, CPU) == 8

    def nothing_fits(batch_size: int) -> float:
        raise error

    with pytest.raises(type(error)) as caught:
        fastest_batch_size(nothing_fits, CPU)
    assert caught.value is error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: device-side assert triggered"),
        ValueError("out of memory"),
        OSError(errno.ENOENT, "No such file"),
        KeyboardInterrupt(),
    ],
    ids=repr,
)
@pytest.mark.parametrize("limit", [0, 4, 5])
def test_other_errors_are_neither_swallowed_nor_tried_again(
    error: BaseException, limit: int
) -> None:
    assert not is_out_of_memory(error)
    tried = []

    def seconds(batch_size: int) -> float:
        tried.append(batch_size)
        if batch_size > limit:
            raise error
        return 0.5

    with pytest.raises(type(error)) as caught:
        fastest_batch_size(seconds, CPU)
    assert caught.value is error
    assert len([size for size in tried if size > limit]) == 1


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        # A fixed cost per batch: 2 is 4.8 % faster than 1, and 4 is 2.4 % faster than 2.
        (lambda n: 0.01 + 0.1 * n, 2),
        (lambda n: 0.1 * n, 1),
        # Beyond 32 it is slower, and between 16 and 32, and 32 and 64, is nothing better.
        (lambda n: 0.5 if n <= 32 else 1.0 * n, 32),
        # It would pay to double 16 again, but its batches are long already.
        (lambda n: 0.9 if n <= 8 else 1.5, 16),
        # Between powers of two, to a quarter of the lower one.
        (lambda n: 0.5 if n <= 48 else 1.0 * n, 48),
        (lambda n: 0.5 if n <= 40 else 1.0 * n, 40),
        (lambda n: 0.5 if n <= 30 else 1.0 * n, 28),
    ],
)
def test_batches_are_doubled_while_it_pays_and_then_refined(
    seconds: Callable[[int], float], best: int
) -> None:
    assert fastest_batch_size(seconds, CPU) == best


def test_a_size_between_the_best_and_memorys_end_is_found() -> None:
    def seconds(batch_size: int) -> float:
        if batch_size > 13:
            raise MemoryError
        return 0.5

    assert fastest_batch_size(seconds, CPU) == 12


def test_nothing_of_a_failed_attempt_is_kept() -> None:
    alive = []

    class Held:
        def __init__(self) -> None:
            alive.append(self)

        def __del__(self) -> None:
            gone.append(True)

    gone: list[bool] = []

    def seconds(batch_size: int) -> float:
        held = Held()
        alive.clear()
        raise MemoryError(str(type(held)))

    assert attempt(seconds, 2, CPU) is None
    assert gone == [True]
