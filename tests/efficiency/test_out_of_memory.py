"""Memory that really ends: a process of its own under a limit of its address space."""

import json
import subprocess
import sys
from typing import Any

import pytest

SCRIPT = """
import json, resource, time
import torch
from torch import nn
from efficient_vits.efficiency import measure_throughput, measure_training
from efficient_vits.efficiency.batch_search import is_out_of_memory

torch.set_num_threads(1)

class Model(nn.Module):
    '''Takes 32 MiB per image, and as long for one as for many: more memory always pays.'''

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 2)
        self.image_bytes = 2**25
        self.sizes = []

    def forward(self, x):
        self.sizes.append(len(x))
        room = torch.empty(len(x), self.image_bytes, dtype=torch.uint8)
        time.sleep(0.01)
        return self.head(x)

def limit(mebibytes):
    pages = int(open("/proc/self/statm").read().split()[0])
    most = pages * resource.getpagesize() + mebibytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (most, most))

model = Model()
# What the first call of each function loads is not the model's; nor are the threads of autograd.
measure_throughput(model, (4,), batch_size=1, min_seconds=0.001)
measure_training(model, (4,), batch_size=1, min_seconds=0.001)

def attempt(measure, **arguments):
    model.sizes.clear()
    try:
        found = measure(model, (4,), min_seconds=0.05, **arguments)
    except RuntimeError as error:
        print(json.dumps({
            "recognised": is_out_of_memory(error), "text": str(error), "sizes": model.sizes
        }))
    else:
        print(json.dumps({"batch_size": found.batch_size, "speed": found.images_per_second}))

limit(420)
attempt(measure_throughput)
attempt(measure_training)
attempt(measure_throughput, batch_size=64)
model.image_bytes = 2**30  # more than the limit, whatever the process holds in reserve
attempt(measure_throughput)
"""

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only Linux holds processes to RLIMIT_AS"
)


@pytest.fixture(scope="module")
def results() -> list[dict[str, Any]]:
    """What was measured: both searches, a batch that is too large, and one image too many."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("search", [0, 1], ids=["inference", "training"])
def test_the_search_ends_where_memory_does_and_finishes(
    results: list[dict[str, Any]], search: int
) -> None:
    # 8 images take 256 MiB and 16 take 512. Of what lies between, 12 take 384 MiB; the rest of the
    # limit is the process' own, and how much of it is in use is not known to the last image.
    assert results[search]["batch_size"] in (8, 10, 11, 12)
    assert results[search]["speed"] > 0


@pytest.mark.parametrize(("attempt", "size"), [(2, 64), (3, 1)])
def test_a_batch_asked_for_or_a_single_image_that_does_not_fit_is_an_error(
    results: list[dict[str, Any]], attempt: int, size: int
) -> None:
    error = results[attempt]
    assert error["recognised"]
    assert "DefaultCPUAllocator" in error["text"]
    assert error["sizes"] == [size]  # and is not tried again
