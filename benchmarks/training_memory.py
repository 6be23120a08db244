"""Training memory: estimated without a GPU, and recorded by the benchmark's authors.

    python benchmarks/training_memory.py --json > docs/data/training_memory.jsonl   # every run
    python benchmarks/training_memory.py vit_s16                                    # one model

One row per model, image size and number of processes of the published run records. The benchmark
trained with a global batch of 2048 and summed the peaks of its processes, so a process has
2048 / processes images, with LAMB, unfused attention, and autocast unless Table 6 says otherwise.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from timm.layers import set_fused_attn

import efficient_vits  # noqa: F401  (registers the models)
from efficient_vits.efficiency.estimate import estimate_memory
from efficient_vits.results import Run, load_rows, table6

GLOBAL_BATCH = 2048


def runs_with_records() -> dict[tuple[str, int, int], list[Run]]:
    """The benchmark's runs by network, image size and number of processes."""
    found: dict[tuple[str, int, int], list[Run]] = {}
    for run in load_rows():
        if run.training_memory and run.training_gpus and run.source == "published run records":
            key = (run.network, int(run.img_size), run.training_gpus)
            found.setdefault(key, []).append(run)
    return found


def without_autocast() -> set[tuple[str, int]]:
    """Models and image sizes whose runs had no autocast."""
    return {(row.name, row.img_size) for row in table6() if "amp=False" in row.run_parameters}


def rows(names: Iterable[str]) -> Iterator[dict[str, Any]]:
    """One row per model, image size and number of processes."""
    chosen, float32 = set(names), without_autocast()
    # Modules decide at construction; estimates turn off what is left.
    set_fused_attn(False)
    for (name, size, processes), runs in runs_with_records().items():
        if chosen and name not in chosen:
            continue
        amp = None if (name, size) in float32 else "float16"
        try:
            use = estimate_memory(
                name,
                GLOBAL_BATCH // processes,
                input_size=(3, size, size),
                amp=amp,
                fused_attention=False,
            )
        except ValueError as error:
            print(f"{name}: {error}", file=sys.stderr)
            continue
        yield {
            "model": name,
            "img_size": size,
            "processes": processes,
            "batch_size": use.batch_size,
            "amp": amp,
            "estimated": use.peak_bytes * processes,
            "activations": use.activation_bytes * processes,
            "runs": len(runs),
            "recorded": round(statistics.mean(run.training_memory or 0 for run in runs)),
            "flops": round(statistics.mean(run.flops for run in runs)),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="NAME", help="models; all by default")
    parser.add_argument("--json", action="store_true", help="one JSON line per row")
    arguments = parser.parse_args()
    known = {name for name, _, _ in runs_with_records()}
    if unknown := sorted(set(arguments.models) - known):
        sys.exit(f"no run records of {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    for row in rows(arguments.models):
        if arguments.json:
            print(json.dumps(row), flush=True)
        else:
            print(
                f"{row['model']:24s} {row['img_size']} {row['processes']} x {row['batch_size']:3d}"
                f"  {row['estimated'] / 2**30:7.1f} GiB, recorded {row['recorded'] / 2**30:7.1f}"
                f"  {row['estimated'] / row['recorded']:5.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
