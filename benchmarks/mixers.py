"""Every mixer in the same ViT-Ti/16: parameters, FLOPs and images per second against softmax.

    python benchmarks/mixers.py                        # every mixer
    python benchmarks/mixers.py hydra window --json    # one JSON line per mixer

Mixers that leave prefix tokens alone stand in a ViT without a class token that pools by the mean,
all others in one with a class token. Each round times every model once, in turn, so that what
disturbs the machine disturbs all of them; a ratio is the median over the rounds.
"""

import argparse
import json
import statistics
import sys
from typing import Any

import timm
import torch
from torch import nn

from efficient_vits.attention import attention_traits, list_attentions
from efficient_vits.efficiency import count_flops, count_parameters, measure_throughput

BASELINE = "softmax"


def build(attention: str) -> nn.Module:
    traits = attention_traits(attention)
    host: dict[str, Any] = {}
    if not (traits.prefix_tokens and traits.mixes_prefix):
        host.update(class_token=False, global_pool="avg")
    model: nn.Module = timm.create_model("vit_ti16", attention=attention, **host)
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("attentions", nargs="*", metavar="NAME", help="mixers; all by default")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each timing")
    parser.add_argument("--json", action="store_true", help="one JSON line per mixer")
    arguments = parser.parse_args()
    names = arguments.attentions or list_attentions()
    if unknown := sorted(set(names) - set(list_attentions())):
        sys.exit(f"unknown: {', '.join(unknown)}; there are {', '.join(list_attentions())}")
    names = [BASELINE, *(name for name in names if name != BASELINE)]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    speeds: dict[str, list[float]] = {name: [] for name in names}
    rows: dict[str, dict[str, Any]] = {}
    for _ in range(arguments.rounds):
        for name in names:
            model = build(name).to(device)
            if name not in rows:
                flops = count_flops(model)
                rows[name] = {
                    "attention": name,
                    "parameters": count_parameters(model),
                    "flops": flops.total,
                    "class_token": bool(model.has_class_token),
                }
            result = measure_throughput(
                model, batch_size=arguments.batch_size, min_seconds=arguments.seconds
            )
            speeds[name].append(result.images_per_second)
    if not arguments.json:
        threads = f", {torch.get_num_threads()} threads" if device == "cpu" else ""
        print(f"{device}{threads}, batch {arguments.batch_size}, torch {torch.__version__}")
        print(f"{'mixer':<22}{'parameters':>12}{'GFLOPs':>8}{'images/s':>10}{'ratio':>7}")
    for name, row in rows.items():
        pairs = zip(speeds[name], speeds[BASELINE], strict=True)
        row["images_per_second"] = statistics.median(speeds[name])
        row["ratio"] = statistics.median(mine / theirs for mine, theirs in pairs)
        if arguments.json:
            print(json.dumps(row))
        else:
            print(
                f"{name:<22}{row['parameters']:>12,}{row['flops'] / 1e9:>8.3f}"
                f"{row['images_per_second']:>10.1f}{row['ratio']:>7.2f}"
            )


if __name__ == "__main__":
    main()
