"""The benchmark's own way to measure throughput, for figures that stand beside its.

From Nauen et al. (arXiv 2308.09372, supplement A.3) and the run records: float32 parameters with
TF32, CUDA events, the mean over 1000 iterations without warm-up, at powers of two and near the
limit of the GPU's memory; the best batch counts.

Where the text leaves room, or the benchmark's code says otherwise:

- The text has 1000 iterations, its code 100. These are 1000.
- "Near the limit" is the largest batch that fits, found by halving to a 16th.
- Nothing is run before the first iteration of a batch size; the first size meets a cold device.
- Off CUDA the host's clock is read after each iteration.
- The CPU has no card that is full. Its sizes end at 128, or where memory does.
"""

import statistics
from collections.abc import Iterator, Sequence

from efficient_vits.efficiency.batch_search import attempt, is_out_of_memory, release
from efficient_vits.efficiency.noise import Watch
from efficient_vits.efficiency.options import Options, Prepared
from efficient_vits.efficiency.timing import seconds_of

PAPER = "paper"
ITERATIONS = 1000
_LARGEST_ON_CPU = 128
_FIXED: dict[str, object] = {
    "amp": None,
    "dtype": "float32",
    "tf32": True,
    "channels_last": False,
    "compile": False,
}

Best = tuple[int, list[float], tuple[str, ...]]


def paper_options(options: Options | None) -> Options:
    """The options with what the protocol lays down; threads and fused attention are free.

    Raises:
        ValueError: they ask for something else.
    """
    given = vars(options or Options())
    differing = [name for name, value in _FIXED.items() if given[name] not in (None, value)]
    if differing:
        asked = ", ".join(f"{name}={given[name]!r}" for name in differing)
        laid_down = ", ".join(f"{name}={value!r}" for name, value in _FIXED.items())
        raise ValueError(f"protocol='paper' is {laid_down}; got {asked}")
    return Options(**{**given, **_FIXED})


def check_iterations(iterations: int) -> None:
    """Raises ValueError unless a mean and a spread can be taken of so many."""
    if type(iterations) is not int or iterations < 2:
        raise ValueError(f"iterations must be an integer above 1, got {iterations!r}")


def paper_times(
    ready: Prepared, input_size: Sequence[int], batch_size: int | None, iterations: int
) -> Best:
    """The fastest batch size, the seconds of its iterations, and flags.

    Args:
        ready: the model under `paper_options`.
        input_size: size of one image without the batch.
        batch_size: the only one to measure; None tries the protocol's.
        iterations: how many of each size, two or more.

    Raises:
        MemoryError, RuntimeError: a single image, or the given batch, doesn't fit.
    """
    if batch_size is not None:
        times, flags = _iterate(ready, input_size, batch_size, iterations)
        return batch_size, times, flags
    found = _results(ready, input_size, iterations)
    return max(found, key=lambda best: best[0] / statistics.fmean(best[1]))


def _results(ready: Prepared, input_size: Sequence[int], iterations: int) -> Iterator[Best]:
    """Powers of two until memory is exhausted, then the largest size that fits."""
    size = 1
    while ready.device.type != "cpu" or size <= _LARGEST_ON_CPU:
        try:
            times, flags = _iterate(ready, input_size, size, iterations)
        except (RuntimeError, MemoryError, OSError) as error:
            if size == 1 or not is_out_of_memory(error):
                raise
            break
        yield size, times, flags
        size *= 2
    else:
        return
    release(ready.device)
    largest = _largest(ready, input_size, size // 2, size)
    if largest > size // 2:
        yield largest, *_iterate(ready, input_size, largest, iterations)


def _largest(ready: Prepared, input_size: Sequence[int], fits: int, too_large: int) -> int:
    resolution = max(fits // 16, 1)
    while too_large - fits > resolution:
        middle = (fits + too_large) // 2

        def once(size: int) -> float:
            images = ready.images(input_size, size)
            return sum(seconds_of(ready.device, lambda: ready.run(images)))

        if attempt(once, middle, ready.device) is None:
            too_large = middle
        else:
            fits = middle
    return fits


def _iterate(
    ready: Prepared, input_size: Sequence[int], batch_size: int, iterations: int
) -> tuple[list[float], tuple[str, ...]]:
    images = ready.images(input_size, batch_size)
    watch = Watch(ready.device)
    # One part per iteration: events on CUDA, where the host waits for the last one only.
    parts = [lambda: ready.run(images)] * iterations
    times = list(seconds_of(ready.device, *parts))
    return times, watch.flags(times)
