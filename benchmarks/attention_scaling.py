"""How time and memory of each token mixer grow with the number of tokens.

    python benchmarks/attention_scaling.py                      # every mixer, 196 to 16,384 tokens
    python benchmarks/attention_scaling.py hydra softmax --json > scaling.jsonl

Mixers of 192 channels and 3 heads on square grids, one image, forward pass without gradients. The
exponents are fitted to the sizes from 1,024 tokens on, beside what the mixer's paper claims.
Synthesizers have parameters per pair of tokens and stop at 4,096.
"""

import argparse
import json
import math
import sys
from typing import Any

import numpy as np
import torch

from efficient_vits.attention import attention_traits, create_attention, list_attentions
from efficient_vits.efficiency import measure_memory, measure_throughput

DIM, HEADS = 192, 3
SIDES = (14, 32, 64, 128)
CLAIMS = {
    "softmax": "N^2",
    "synthesizer_d": "N^2",
    "synthesizer_r": "N^2",
    "synthesizer_fd": "N^2",
    "synthesizer_fr": "N^2",
    "routing": "N^1.5",
    "reformer": "N log N",
    "informer": "N log N",
    "fnet": "N log N",
    "gfnet": "N log N",
    "afno": "N log N",
}  # all others: N
SMALL_ONLY = ("synthesizer_d", "synthesizer_r", "synthesizer_fd", "synthesizer_fr")


def measure(name: str, side: int, seconds: float) -> dict[str, Any]:
    prefix = int(attention_traits(name).prefix_tokens)
    mixer = create_attention(
        name, DIM, num_heads=HEADS, grid_size=(side, side), num_prefix_tokens=prefix
    )
    size = (prefix + side * side, DIM)
    memory = measure_memory(mixer, size, batch_size=1)
    speed = measure_throughput(mixer, size, batch_size=1, min_seconds=seconds)
    return {
        "attention": name,
        "tokens": side * side,
        "milliseconds": 1e3 * speed.latency_seconds,
        "spread": speed.spread,
        "activation_bytes": memory.activation_bytes,
    }


def exponent(rows: list[dict[str, Any]], key: str) -> float:
    """Slope of log `key` over log N, from 1,024 tokens on; NaN for fewer than two sizes."""
    points = [(math.log(r["tokens"]), math.log(r[key])) for r in rows if r["tokens"] >= 1024]
    if len(points) < 2:
        return math.nan
    x, y = zip(*points, strict=True)
    return float(np.polynomial.Polynomial.fit(x, y, 1).convert().coef[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("attentions", nargs="*", metavar="NAME", help="mixers; all by default")
    parser.add_argument("--seconds", type=float, default=0.5, help="of each timing")
    parser.add_argument("--largest", type=int, default=SIDES[-1], help="side of the largest grid")
    parser.add_argument("--json", action="store_true", help="one JSON line per size")
    arguments = parser.parse_args()
    names = arguments.attentions or list_attentions()
    if unknown := sorted(set(names) - set(list_attentions())):
        sys.exit(f"unknown: {', '.join(unknown)}; there are {', '.join(list_attentions())}")
    if not arguments.json:
        print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, dim {DIM}")
        print(f"{'attention':<16}{'claim':>9}{'time':>7}{'memory':>8}   ms at each N")
    for name in names:
        largest = min(arguments.largest, 64) if name in SMALL_ONLY else arguments.largest
        sides = [side for side in SIDES if side <= largest]
        rows = [measure(name, side, arguments.seconds) for side in sides]
        if arguments.json:
            for row in rows:
                print(json.dumps(row), flush=True)
            continue
        times = "  ".join(f"{row['tokens']}: {row['milliseconds']:.2f}" for row in rows)
        print(
            f"{name:<16}{CLAIMS.get(name, 'N'):>9}{exponent(rows, 'milliseconds'):>7.2f}"
            f"{exponent(rows, 'activation_bytes'):>8.2f}   {times}",
            flush=True,
        )


if __name__ == "__main__":
    main()
