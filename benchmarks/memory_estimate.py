"""Estimated and measured peaks on the CPU, side by side.

    python benchmarks/memory_estimate.py --json > docs/data/memory_estimate.jsonl   # the table
    python benchmarks/memory_estimate.py swin_ti_w7 resnet50

For each model: inference at batch 1 and 8, and training with LAMB at batch 4, without autocast and
with bfloat16; with one thread, on which some of torch's choices depend.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import timm
import torch

import efficient_vits  # noqa: F401  (registers the models)
from efficient_vits.efficiency import estimate_memory, measure_memory

MODELS = (
    "vit_ti16",
    "hydra_ti16",
    "tome_ti16_r8",
    "switch8_ti16",
    "swin_ti_w7",
    "xcit_s12_p16",
    "cvt_13",
    "fastvit_s12",
    "efficientmod_xxs",
    "resnet50",
)
SETTINGS = (
    (False, 1, None),
    (False, 8, None),
    (False, 8, "bfloat16"),
    (True, 4, None),
    (True, 4, "bfloat16"),
)


def rows(names: Iterable[str]) -> Iterator[dict[str, Any]]:
    """One row per model and setting."""
    for name in names:
        model = timm.create_model(name)
        for training, batch_size, amp in SETTINGS:
            options: dict[str, Any] = {"batch_size": batch_size, "training": training, "amp": amp}
            estimated = estimate_memory(model, device="cpu", **options)
            measured = measure_memory(model, device="cpu", **options)
            yield {
                "model": name,
                **options,
                "estimated": estimated.peak_bytes,
                "measured": measured.peak_bytes,
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="NAME", help="timm's too; those of the table")
    parser.add_argument("--json", action="store_true", help="one JSON line per row")
    arguments = parser.parse_args()
    names = arguments.models or MODELS
    if unknown := [name for name in names if not timm.is_model(name)]:
        sys.exit(f"no model {', '.join(unknown)}; see timm.list_models()")
    torch.set_num_threads(1)
    for row in rows(names):
        if arguments.json:
            print(json.dumps(row), flush=True)
        else:
            print(
                f"{row['model']:20s} {'training' if row['training'] else 'inference':9s}"
                f" batch {row['batch_size']} {row['amp'] or 'float32':8s}"
                f" {row['estimated'] / 2**20:8.1f} MiB, measured {row['measured'] / 2**20:8.1f}"
                f"  {row['estimated'] / row['measured']:.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
