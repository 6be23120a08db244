"""Images per second of models before and after `efficient_vits.fuse`, in one run.

    python benchmarks/fuse.py
    python benchmarks/fuse.py resnet50 slab_s16 --batch-size 32 --rounds 3

Each round times both forms of every model, in turn, so that what disturbs the machine disturbs all
of them; a ratio is the median over the rounds, its range stands behind it.
"""

import argparse
import statistics
import sys

import timm
import torch

from efficient_vits import fuse
from efficient_vits.efficiency import count_parameters, measure_throughput

MODELS = (
    "resnet50",
    "fastvit_s12",
    "efficientformerv2_s0",
    "swiftformer_s",
    "efficientvit_b2",
    "nextvit_small",
    "repvgg_a0",
    "mobileone_s0",
    "levit_256",
    "slab_s16",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="NAME", default=MODELS, help="timm's too")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each timing")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.models if not timm.is_model(name)]:
        sys.exit(f"no models {', '.join(unknown)}; see timm.list_models()")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sizes: dict[str, tuple[int, int]] = {}
    speeds: dict[str, list[tuple[float, float]]] = {name: [] for name in arguments.models}
    for _ in range(arguments.rounds):
        for name, seen in speeds.items():
            model = timm.create_model(name).to(device).eval()
            fused = fuse(model)
            sizes[name] = count_parameters(model), count_parameters(fused)
            size = model.pretrained_cfg["input_size"]
            before, after = (
                measure_throughput(
                    form, size, batch_size=arguments.batch_size, min_seconds=arguments.seconds
                ).images_per_second
                for form in (model, fused)
            )
            seen.append((before, after))
    threads = f", {torch.get_num_threads()} threads" if device == "cpu" else ""
    print(f"{device}{threads}, batch {arguments.batch_size}, torch {torch.__version__}")
    print(f"{'model':<24}{'parameters':>20}{'images/s':>18}{'ratio':>8}  range")
    for name, seen in speeds.items():
        before, after = (statistics.median(column) for column in zip(*seen, strict=True))
        ratios = [b / a for a, b in seen]
        parameters = " -> ".join(f"{count / 1e6:.2f} M" for count in sizes[name])
        print(
            f"{name:<24}{parameters:>20}{f'{before:.1f} -> {after:.1f}':>18}"
            f"{statistics.median(ratios):>8.2f}  {min(ratios):.2f} - {max(ratios):.2f}"
        )


if __name__ == "__main__":
    main()
