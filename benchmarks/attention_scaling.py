"""How time and memory of each token mixer grow with the number of tokens.

    python benchmarks/attention_scaling.py                      # every mixer, 196 to 16,384 tokens
    python benchmarks/attention_scaling.py --json > scaling.jsonl
    python benchmarks/attention_scaling.py --read scaling.jsonl --figure scaling.svg

Mixers of 192 channels and 3 heads on square grids, one image, forward pass without gradients. The
exponents are fitted to the sizes from 1,024 tokens on, beside what the mixer's paper claims.
Mixers that hold the matrix of all pairs of tokens stop at 4,096. Sinkhorn attention, with buckets
of b = 32 tokens, pays N b for attention and (N / b)^2 for sorting blocks of b tokens.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from efficient_vits.attention import attention_traits, create_attention, list_attentions
from efficient_vits.efficiency import measure_memory, measure_throughput

DIM, HEADS = 192, 3
SIDES = (14, 32, 64, 128)
CLAIMS = {
    "softmax": "N^2",
    "conv_projection": "N^2",
    "efficientformer": "N^2",
    "emsa": "N^2",
    "wavelet": "N^2",
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
    "sinkhorn": "N^2 / b",
}  # all others: N
SMALL_ONLY = (
    "efficientformer",
    "synthesizer_d",
    "synthesizer_r",
    "synthesizer_fd",
    "synthesizer_fr",
)


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


def draw(measured: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Time and memory against tokens, one line per mixer, coloured by what its paper claims."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colours = {"N^2": "#7f7f7f", "N^2 / b": "#cc79a7", "N^1.5": "#009e73", "N log N": "#d55e00"}
    figure, axes = plt.subplots(1, 2, figsize=(11, 6.5), layout="constrained")
    units = {"milliseconds": ("time, ms", 1.0), "activation_bytes": ("activations, MiB", 2.0**20)}
    for axis, (key, (label, unit)) in zip(axes, units.items(), strict=True):
        ends = []
        for name, rows in measured.items():
            x, y = [row["tokens"] for row in rows], [row[key] / unit for row in rows]
            colour = colours.get(CLAIMS.get(name, "N"), "#0072b2")
            width = 2.5 if name == "softmax" else 1.2
            axis.loglog(x, y, color=colour, marker="o", markersize=3, linewidth=width)
            ends.append((math.log(y[-1]), y[-1], x[-1], name, colour))
        low, high = map(math.log, axis.get_ylim())
        for place, (_, y_end, x_end, name, colour) in zip(
            spread([end[0] for end in sorted(ends)], (high - low) / 36, high),
            sorted(ends),
            strict=True,
        ):
            axis.annotate(
                name, (x_end, y_end), (1.9 * SIDES[-1] ** 2, math.exp(place)), color=colour,
                va="center", fontsize=8,
                arrowprops={"arrowstyle": "-", "color": colour, "alpha": 0.3, "linewidth": 0.6},
            )  # fmt: skip
        axis.set(xlabel="tokens", ylabel=label, xlim=(150, 8 * SIDES[-1] ** 2))
        axis.set_xticks([side**2 for side in SIDES], [f"{side**2:,}" for side in SIDES])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    claims = {"N": "#0072b2", **colours}
    lines = [plt.Line2D([], [], color=colour) for colour in claims.values()]
    figure.legend(lines, claims, title="claimed", loc="outside lower center", ncols=len(claims))
    plt.rcParams["svg.hashsalt"] = "efficient_vits"  # the same picture is the same file
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def spread(places: Sequence[float], apart: float, highest: float) -> list[float]:
    """Ascending places moved to lie `apart` from each other and not above `highest`."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + apart) if moved else place)
    for i, place in reversed(list(enumerate(moved))):
        above = moved[i + 1] - apart if i + 1 < len(moved) else highest
        moved[i] = min(place, above)
    return moved


def read(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows of each mixer, from the lines of ``--json``."""
    measured: dict[str, list[dict[str, Any]]] = {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        measured.setdefault(row["attention"], []).append(row)
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("attentions", nargs="*", metavar="NAME", help="mixers; all by default")
    parser.add_argument("--seconds", type=float, default=0.5, help="of each timing")
    parser.add_argument("--largest", type=int, default=SIDES[-1], help="side of the largest grid")
    parser.add_argument("--json", action="store_true", help="one JSON line per size")
    parser.add_argument("--read", type=Path, help="measure nothing, take the lines of --json")
    parser.add_argument("--figure", type=Path, help="draw time and memory against tokens")
    arguments = parser.parse_args()
    known = read(arguments.read) if arguments.read else {}
    names = arguments.attentions or list(known) or list_attentions()
    if unknown := sorted(set(names) - set(list_attentions())):
        sys.exit(f"unknown: {', '.join(unknown)}; there are {', '.join(list_attentions())}")
    if not arguments.json:
        if not known:
            print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, dim {DIM}")
        print(f"{'attention':<16}{'claim':>9}{'time':>7}{'memory':>8}   ms at each N")
    measured = {}
    for name in names:
        largest = min(arguments.largest, 64) if name in SMALL_ONLY else arguments.largest
        sides = [side for side in SIDES if side <= largest]
        rows = known.get(name) or [measure(name, side, arguments.seconds) for side in sides]
        measured[name] = rows
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
    if arguments.figure:
        draw(measured, arguments.figure)


if __name__ == "__main__":
    main()
