"""Images per second of our ViTs over timm's plain ViT of the same size, in one run.

    python benchmarks/models.py --size s --batch-size 8
    python benchmarks/models.py hydra_ti16 tome_ti16_r8 --rounds 3

Each round times every model once, in turn, so that what disturbs the machine disturbs all of them;
a ratio is the median over the rounds, its range stands behind it. 1.00 is timm's
``vit_*_patch16_224``, the code that users have today.
"""

import argparse
import statistics
import sys

import timm
import torch

import efficient_vits
from efficient_vits.efficiency import measure_throughput

TIMM = {
    "ti": "vit_tiny_patch16_224",
    "s": "vit_small_patch16_224",
    "b": "vit_base_patch16_224",
    "l": "vit_large_patch16_224",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="NAME", help="all of the size by default")
    parser.add_argument("--size", choices=TIMM, default="ti")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each timing")
    arguments = parser.parse_args()
    ours = arguments.models or efficient_vits.list_models(
        f"*_{arguments.size}16*", built_on="efficient_vits"
    )
    unknown = [name for name in ours if not timm.is_model(name)]
    if unknown:
        sys.exit(f"no models {', '.join(unknown)}; see efficient-vits list")
    baseline = TIMM[arguments.size]
    speeds: dict[str, list[float]] = {name: [] for name in (baseline, *ours)}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for _ in range(arguments.rounds):
        for name, seen in speeds.items():
            model = timm.create_model(name).to(device)
            result = measure_throughput(
                model, batch_size=arguments.batch_size, min_seconds=arguments.seconds
            )
            seen.append(result.images_per_second)
    threads = f", {torch.get_num_threads()} threads" if device == "cpu" else ""
    print(f"{device}{threads}, batch {arguments.batch_size}, torch {torch.__version__}")
    print(f"{'model':<28}{'images/s':>10}{'ratio':>8}  range")
    for name, seen in speeds.items():
        ratios = [a / b for a, b in zip(seen, speeds[baseline], strict=True)]
        print(
            f"{name:<28}{statistics.median(seen):>10.1f}{statistics.median(ratios):>8.2f}"
            f"  {min(ratios):.2f} - {max(ratios):.2f}"
        )


if __name__ == "__main__":
    main()
