"""Throughput of one model again and again, each time in a fresh process: do the intervals hold?

    python benchmarks/repeatability.py
    python benchmarks/repeatability.py hydra_ti16 --runs 9 --seconds 10 --output repeats.jsonl

The first run says where 95 % of repeats should lie; the last line counts how many of the others do.
Each line of the JSON Lines file is one run, with its environment.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import timm
import torch

from efficient_vits.efficiency import Options, environment, measure_throughput


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="vit_ti16", help="timm's too")
    parser.add_argument("--runs", type=int, default=9, help="the first and its repeats")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each run")
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--output", type=Path, help="a file of JSON Lines to append to")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not timm.is_model(arguments.model):
        sys.exit(f"no model {arguments.model}; see timm.list_models()")
    if arguments.runs < 2:
        sys.exit(f"--runs {arguments.runs}: it takes a first run and a repeat")
    if arguments.child:
        print(json.dumps(run(arguments)))
        return
    rows: list[dict[str, Any]] = []
    print(f"{'run':>4}{'images/s':>10}{'95 % of this run':>20}{'95 % of repeats':>20}  flags")
    for number in range(1, arguments.runs + 1):
        rows.append({**in_fresh_process(), "run": number})
        if arguments.output:
            with arguments.output.open("a", encoding="utf-8") as file:
                file.write(json.dumps(rows[-1]) + "\n")
        print(line(rows[-1]), flush=True)
    low, high = rows[0]["throughput"]["prediction"]
    repeats = [row["throughput"]["images_per_second"] for row in rows[1:]]
    inside = sum(low <= speed <= high for speed in repeats)
    print(f"{inside} of {len(repeats)} repeats inside {low:.1f} to {high:.1f} images/s")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(0)
    model = timm.create_model(arguments.model).eval()
    found = measure_throughput(
        model,
        model.pretrained_cfg["input_size"],
        batch_size=arguments.batch_size,
        device="cuda" if torch.cuda.is_available() else "cpu",
        min_seconds=arguments.seconds,
        options=Options(threads=arguments.threads),
    )
    return {
        "name": arguments.model,
        "seconds": arguments.seconds,
        "throughput": dataclasses.asdict(found),
        "environment": environment(),
    }


def in_fresh_process() -> dict[str, Any]:
    command = [sys.executable, __file__, *sys.argv[1:], "--child"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    row: dict[str, Any] = json.loads(done.stdout)
    return row


def line(row: dict[str, Any]) -> str:
    speed = row["throughput"]
    confidence, prediction = (
        f"{low:.1f} to {high:.1f}" for low, high in (speed["interval"], speed["prediction"])
    )
    flags = ", ".join(speed["flags"]) + " (measured twice)" * speed["rerun"]
    speeds = f"{speed['images_per_second']:>10.1f}{confidence:>20}{prediction:>20}"
    return f"{row['run']:>4}{speeds}  {flags}"


if __name__ == "__main__":
    main()
