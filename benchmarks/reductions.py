"""Do models with fewer tokens get faster? Latency and throughput against the plain ViT, in one run.

    python benchmarks/reductions.py --size s                       # batches of 1, 8 and 64
    python benchmarks/reductions.py evit_s16 tome_s16_r8 --batch-sizes 8 --compile
    python benchmarks/reductions.py evit_s16 --profile 1           # where the time of a batch goes

Each round times every model once, in turn, so that what disturbs the machine disturbs all of them.
A ratio is the median over the rounds of the plain ViT's time by the model's, with its range; above
1 the model is faster. ``--compile`` times what torch.compile with inductor makes of each.
``--profile`` attributes the time of a batch, of the model and of the plain ViT, to kinds of
operators; their difference says what a reduction costs and what it saves.
"""

import argparse
import statistics
import sys
from collections import defaultdict
from typing import Any

import timm
import torch
from torch import nn

import efficient_vits
from efficient_vits.efficiency import count_flops, measure_throughput

KINDS = {
    "matrix products": ("addmm", "bmm", "mm", "conv", "attention", "matmul", "linear"),
    "norms, activations": ("norm", "gelu", "softmax", "sigmoid", "relu", "exp", "log"),
    "selection": ("topk", "sort", "gather", "scatter", "index", "max", "where", "eq", "arange"),
    "moving memory": ("copy", "cat", "clone", "contiguous", "fill", "zero", "empty", "pad"),
}


def kind_of(operator: str) -> str:
    """The kind that an operator's time counts for."""
    name = operator.removeprefix("aten::")
    return next(
        (kind for kind, parts in KINDS.items() if any(part in name for part in parts)), "other"
    )


def profile(name: str, batch_size: int, repeats: int = 10) -> dict[str, float]:
    """Milliseconds of a batch by kind of operator, own time of each."""
    model = timm.create_model(name).eval()
    x = torch.randn(batch_size, *model.default_cfg["input_size"])
    with torch.inference_mode():
        for _ in range(3):
            model(x)
        activities = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities) as trace:
            for _ in range(repeats):
                model(x)
    spent: dict[str, float] = defaultdict(float)
    for event in trace.key_averages():
        spent[kind_of(event.key)] += event.self_cpu_time_total / repeats / 1e3
    return spent


def report_profile(names: list[str], baseline: str, batch_size: int) -> None:
    spent = {name: profile(name, batch_size) for name in (baseline, *names)}
    print(f"ms of a batch of {batch_size} by kind of operator (difference to {baseline})")
    for name, kinds in spent.items():
        parts = "  ".join(
            f"{kind} {kinds[kind]:.1f} ({kinds[kind] - spent[baseline][kind]:+.1f})"
            for kind in (*KINDS, "other")
        )
        print(f"{name:<26}{sum(kinds.values()):>8.1f}  {parts}", flush=True)


def tokens_left(model: Any) -> str:
    count = getattr(model, "token_counts", [None])[-1]
    return "?" if count is None else str(count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="NAME", help="all of the size by default")
    parser.add_argument("--size", choices=("ti", "s", "b"), default="ti")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each timing")
    parser.add_argument("--compile", action="store_true", help="time compiled models")
    parser.add_argument("--profile", type=int, metavar="BATCH", help="attribute, do not compare")
    arguments = parser.parse_args()
    baseline = f"vit_{arguments.size}16"
    names = arguments.models or efficient_vits.list_models(
        f"*_{arguments.size}16*", axis="token sequence", built_on="efficient_vits"
    )
    if unknown := [name for name in names if not timm.is_model(name)]:
        sys.exit(f"no models {', '.join(unknown)}; see efficient-vits list")
    if arguments.profile:
        report_profile(names, baseline, arguments.profile)
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    threads = f", {torch.get_num_threads()} threads" if device == "cpu" else ""
    how = ", compiled" if arguments.compile else ""
    print(f"{device}{threads}{how}, torch {torch.__version__}, baseline {baseline}")
    print("model                     tokens  GFLOPs  batch   ms/image   ratio  range")
    for batch_size in arguments.batch_sizes:
        times: dict[str, list[float]] = {name: [] for name in (baseline, *names)}
        models: dict[str, nn.Module] = {
            name: timm.create_model(name).eval().to(device) for name in times
        }
        facts = {
            name: (tokens_left(model), count_flops(model).total / 1e9)
            for name, model in models.items()
        }
        if arguments.compile:
            torch._dynamo.reset()
            models = {name: torch.compile(model) for name, model in models.items()}
        for _ in range(arguments.rounds):
            for name, model in models.items():
                result = measure_throughput(
                    model, batch_size=batch_size, min_seconds=arguments.seconds
                )
                times[name].append(result.latency_seconds)
        for name, seen in times.items():
            ratios = [b / a for a, b in zip(seen, times[baseline], strict=True)]
            tokens, gflops = facts[name]
            print(
                f"{name:<26}{tokens:>6}{gflops:>8.2f}{batch_size:>7}"
                f"{1e3 * statistics.median(seen) / batch_size:>11.2f}"
                f"{statistics.median(ratios):>8.2f}  {min(ratios):.2f} - {max(ratios):.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
