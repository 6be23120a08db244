"""The space of convolutions, against what the profiler records of single ones."""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from efficient_vits.efficiency import estimate_memory, measure_memory
from efficient_vits.efficiency.cpu_rules import cpu_workspace

CONVOLUTION = "aten.convolution.default"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


CASES = {
    "kernels of 3": (nn.Conv2d(16, 32, 3, padding=1), (16, 28, 28), 4),
    "strided": (nn.Conv2d(16, 32, 3, stride=2), (16, 28, 28), 4),
    "depthwise": (nn.Conv2d(32, 32, 7, padding=3, groups=32), (32, 28, 28), 4),
    "patches": (nn.Conv2d(3, 96, 4, stride=4), (3, 64, 64), 4),
    "pixels of few images": (nn.Conv2d(32, 64, 1), (32, 28, 28), 4),
    "pixels of many images": (nn.Conv2d(32, 64, 1), (32, 14, 14), 16),
    "a small map": (nn.Conv2d(64, 64, 3, padding=1), (64, 8, 8), 1),
    "sequences": (nn.Conv1d(32, 32, 3), (32, 512), 4),
}


def peaks(case: str, amp: str | None) -> tuple[int, int]:
    """Bytes that are estimated, and that are measured."""
    conv, size, batch_size = CASES[case]
    options = {"input_size": size, "batch_size": batch_size, "amp": amp}
    estimated = estimate_memory(conv, device="cpu", training=False, **options)
    return estimated.peak_bytes, measure_memory(conv, **options).peak_bytes


@pytest.fixture(scope="module")
def bfloat16_peaks() -> dict[str, tuple[int, int]]:
    """Those of all cases by oneDNN's kernels for AVX-512, which the rules describe.

    For a processor with AMX it has others. The limit is read at its first use, hence a process.
    """
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        pytest.skip("the rules for bfloat16 are those of AVX-512, which this processor lacks")
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}
    command = [sys.executable, __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


# Of tables for the kernel, and of channels filled up to a multiple, nothing is known.
@pytest.mark.parametrize("case", CASES)
def test_a_convolution_takes_what_the_profiler_records(case: str) -> None:
    estimated, measured = peaks(case, None)
    assert estimated == pytest.approx(measured, rel=0.03)


@pytest.mark.parametrize("case", CASES)
def test_so_does_one_in_bfloat16(case: str, bfloat16_peaks: dict[str, tuple[int, int]]) -> None:
    estimated, measured = bfloat16_peaks[case]
    assert estimated == pytest.approx(measured, rel=0.03)


def test_pixels_are_copied_by_more_than_one_thread() -> None:
    images, weight = torch.ones(4, 32, 28, 28), torch.ones(64, 32, 1, 1)
    out = nn.functional.conv2d(images, weight)
    rule = functools.partial(cpu_workspace, CONVOLUTION, result=out)
    arguments = (images, weight, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)
    assert rule(arguments=arguments) == 0
    torch.set_num_threads(2)
    assert rule(arguments=arguments) == max(images.nbytes + weight.nbytes, out.nbytes)


def test_channels_last_and_other_operators_take_nothing() -> None:
    images = torch.ones(4, 32, 28, 28).contiguous(memory_format=torch.channels_last)
    weight = torch.ones(8, 32, 3, 3)
    out = nn.functional.conv2d(images, weight)
    geometry = ([1, 1], [0, 0], [1, 1], False, [0, 0], 1)
    assert cpu_workspace(CONVOLUTION, (images, weight, None, *geometry), out) == 0
    backward = (out, images, weight, None, *geometry, [True, True, False])
    assert cpu_workspace("aten.convolution_backward.default", backward, None) == 0
    assert cpu_workspace("aten.mm.default", (images, weight), out) == 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps({case: peaks(case, "bfloat16") for case in CASES}))
