"""Training memory: estimated without a GPU, and recorded by the benchmark's authors.

    python benchmarks/training_memory.py --json > docs/data/training_memory.jsonl   # every run
    python benchmarks/training_memory.py vit_s16                                    # one network

One row per published run record. The benchmark trained with a global batch of 2048 and summed the
peaks of its processes, so a process has 2048 / processes images, with LAMB, unfused attention, and
autocast unless Table 6 says otherwise. Runs of one network under equal conditions share an
estimate.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

from timm.layers import set_fused_attn

import efficient_vits  # noqa: F401  (registers the models)
from efficient_vits.efficiency import MemoryUse, estimate_memory
from efficient_vits.results import Run, load_rows, table6

GLOBAL_BATCH = 2048


def run_records() -> list[Run]:
    """The benchmark's runs whose exact figures are published."""
    return [run for run in load_rows() if run.source == "published run records"]


@cache
def without_autocast() -> frozenset[tuple[str, int]]:
    """Models and image sizes whose runs had no autocast."""
    return frozenset(
        (row.name, row.img_size) for row in table6() if "amp=False" in row.run_parameters
    )


@cache
def estimate(network: str, img_size: int, processes: int, amp: str | None) -> MemoryUse:
    """What one of the processes takes."""
    return estimate_memory(
        network,
        GLOBAL_BATCH // processes,
        input_size=(3, img_size, img_size),
        amp=amp,
        fused_attention=False,
    )


def rows(networks: Iterable[str]) -> Iterator[dict[str, Any]]:
    """One row per run; of all networks, or of these."""
    chosen = set(networks)
    # Modules decide at construction; estimates turn off what is left.
    set_fused_attn(False)
    for run in run_records():
        if chosen and run.network not in chosen:
            continue
        size, processes = int(run.img_size), run.training_gpus or 0
        amp = None if (run.name, size) in without_autocast() else "float16"
        use = estimate(run.network, size, processes, amp)
        yield {
            "model": run.name,
            "network": run.network,
            "img_size": size,
            "pretrain_size": run.pretrain_size,
            "processes": processes,
            "batch_size": use.batch_size,
            "amp": amp,
            "estimated": use.peak_bytes * processes,
            "recorded": run.training_memory,
            "flops": run.flops,
        }


def line(row: dict[str, Any]) -> str:
    """A row to read."""
    recorded = "none recorded"
    if row["recorded"]:
        recorded = f"{row['recorded'] / 2**30:7.1f} recorded"
        recorded += f"  {row['estimated'] / row['recorded']:5.2f}"
    return (
        f"{row['model']:24s} {row['img_size']} {row['processes']} x {row['batch_size']:3d}"
        f"  {row['estimated'] / 2**30:7.1f} GiB, {recorded}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", metavar="NAME", help="networks; all by default")
    parser.add_argument("--json", action="store_true", help="one JSON line per run")
    arguments = parser.parse_args()
    known = {run.network for run in run_records()}
    if unknown := sorted(set(arguments.networks) - known):
        sys.exit(f"no run records of {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    start = time.monotonic()
    for row in rows(arguments.networks):
        print(json.dumps(row) if arguments.json else line(row), flush=True)
    minutes = (time.monotonic() - start) / 60
    print(f"{estimate.cache_info().misses} estimates in {minutes:.1f} minutes", file=sys.stderr)


if __name__ == "__main__":
    main()
