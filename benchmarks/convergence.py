"""Does a model learn under the preset `digits`, and what happens in its blocks meanwhile?

    python benchmarks/convergence.py hydra_ti16 avit_ti16 --seeds 0 1 2 --output runs/convergence
    python benchmarks/convergence.py performer_ti16 --epochs 30 --output runs/convergence
    python benchmarks/convergence.py halonet_h0 --own "depths=(1,1,2,1)" width=32 block_size=4 ...
    python benchmarks/convergence.py halonet_h0 --without shortcuts norms ...
    python benchmarks/convergence.py avit_ti16 --set clip_grad=None ...

This is `efficient-vits train NAME --data digits` on the CPU, with its recipe unchanged but for
`--set`; `--epochs` stops before its end, and the same command with a larger number goes on from
there. `--without` takes from HaloNet what the benchmark's code lacked. A run prints a JSON line:

- `top1`, `losses`: for each epoch, accuracy on the test images in percent, the loss's terms;
- `largest_token`: for each block, the largest norm of a token that it gave in training;
- `gradients`: for each block, the smallest and largest norm of its gradient before clipping;
- `smallest_normaliser`: the smallest sum by which kernel attention divided, null elsewhere;
- `tokens`: patch tokens that enter each block of a model that lets images decide, the mean of 50
  test images after the training, null elsewhere.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import timm
import torch
from digits import blocks_of, own_argument, smallest_normaliser
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from efficient_vits.efficiency import environment, flop_distribution
from efficient_vits.models.halonet import HaloBottleneck
from efficient_vits.training import (
    EpochRow,
    Recipe,
    Start,
    Update,
    build_model,
    from_checkpoint,
    load_data,
    preset,
    session,
    train,
)
from efficient_vits.training.loaders import evaluation_loader

RECIPE = preset("digits")


PARTS = ("shortcuts", "norms")


class Nothing(nn.Module):
    """Gives zero."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x[:1, :1, :1, :1])


def take_away(model: nn.Module, parts: Sequence[str]) -> nn.Module:
    """A HaloNet without these parts; its last norms no longer begin at zero."""
    for block in model.modules():
        if isinstance(block, HaloBottleneck) and parts:
            nn.init.ones_(block.conv3_1x1.bn.weight)
            if "shortcuts" in parts:
                block.shortcut = Nothing()
    if "norms" in parts:
        for module in list(model.modules()):
            for name, child in module.named_children():
                if isinstance(child, BatchNormAct2d):
                    setattr(module, name, child.act)
    return model


class Stop(Exception):
    """As many epochs as were asked for."""


class Watch:
    """What happens in the blocks of a model during an epoch."""

    def __init__(self, normaliser: list[float], clip: float | None) -> None:
        self.blocks: list[nn.Module] = []
        self.clip = clip
        self.normaliser = normaliser
        self.begin_epoch()

    def begin_epoch(self) -> None:
        self.tokens = [0.0] * len(self.blocks)
        self.clipped = [0.0] * len(self.blocks)
        self.gradients = [[math.inf, 0.0] for _ in self.blocks]
        self.normaliser[0] = math.inf

    def model(self, model: nn.Module) -> nn.Module:
        """Starts to watch a model."""
        self.blocks = blocks_of(model)
        for number, block in enumerate(self.blocks):

            def given(module: nn.Module, args: Any, output: Any, number: int = number) -> None:
                output = output if isinstance(output, Tensor) else output[0]
                if module.training:
                    norms = output.detach().norm(dim=1 if output.ndim == 4 else -1)
                    self.tokens[number] = max(self.tokens[number], float(norms.max()))

            block.register_forward_hook(given)
        self.begin_epoch()
        return model

    def before_step(self, *_: Any) -> None:
        """Looks at the gradients, which have been clipped."""
        self.clipped = [
            float(torch.stack([p.grad.norm() for p in b.parameters() if p.grad is not None]).norm())
            for b in self.blocks
        ]

    def after_update(self, update: Update) -> None:
        """Undoes the clipping of what was seen."""
        factor = max(float(update.gradient_norm) / self.clip, 1.0) if self.clip else 1.0
        for seen, clipped in zip(self.gradients, self.clipped, strict=True):
            seen[:] = [min(seen[0], clipped * factor), max(seen[1], clipped * factor)]

    def row(self) -> dict[str, Any]:
        """What was seen since the epoch began."""
        normaliser = None if math.isinf(self.normaliser[0]) else self.normaliser[0]
        return {
            "largest_token": self.tokens,
            "gradients": self.gradients,
            "smallest_normaliser": normaliser,
        }


def over_run(epochs: list[dict[str, Any]]) -> dict[str, Any]:
    """The same over all epochs, to three digits."""
    tokens = zip(*[epoch["largest_token"] for epoch in epochs], strict=True)
    gradients = zip(*[epoch["gradients"] for epoch in epochs], strict=True)
    normalisers = [epoch["smallest_normaliser"] for epoch in epochs]
    known = [smallest for smallest in normalisers if smallest is not None]
    return {
        "largest_token": [short(max(block)) for block in tokens],
        "gradients": [
            [short(min(low for low, _ in block)), short(max(high for _, high in block))]
            for block in gradients
        ],
        "smallest_normaliser": short(min(known)) if known else None,
    }


def short(value: float) -> float:
    return float(f"{value:.3g}")


@contextmanager
def watching(without: Sequence[str], clip: float | None) -> Iterator[Watch]:
    """A watch on the next model that is trained."""
    with ExitStack() as stack:
        watch = Watch(stack.enter_context(smallest_normaliser()), clip)
        build = session.build_model

        def watched(*given: Any) -> nn.Module:
            return watch.model(take_away(build(*given), without))

        stack.enter_context(mock.patch.object(session, "build_model", watched))
        stack.callback(register_optimizer_step_pre_hook(watch.before_step).remove)
        yield watch


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run(
    name: str,
    own: dict[str, Any],
    without: Sequence[str],
    settings: dict[str, Any],
    seed: int,
    epochs: int,
    folder: Path,
) -> dict[str, Any]:
    """Trains up to this epoch, from where the folder's run is, and gives the row of the run."""
    seen = folder / "watch.jsonl"
    recipe = RECIPE.with_changes(**settings)
    with watching(without, recipe.clip_grad) as watch:

        def on_epoch(row: EpochRow) -> None:
            kept = [line for line in read(seen) if line["epoch"] < row.epoch]
            kept.append({"epoch": row.epoch, **watch.row()})
            seen.write_text("".join(json.dumps(line) + "\n" for line in kept))
            watch.begin_epoch()
            if row.epoch >= epochs:
                raise Stop

        try:
            if len(read(folder / "epochs.jsonl")) < epochs:
                how: dict[str, Any] = {"seed": seed, "resume": True, "cpu": True}
                callbacks: dict[str, Any] = {"on_update": watch.after_update, "on_epoch": on_epoch}
                train(Start(name, own), load_data("digits"), recipe, folder, **how, **callbacks)
        except Stop:
            pass
    rows, watched = read(folder / "epochs.jsonl")[:epochs], read(seen)[:epochs]
    facts = environment()
    return {
        "model": name,
        "arguments": own,
        "without": list(without),
        "settings": settings,
        "seed": seed,
        "top1": [round(row["top1"], 2) for row in rows],
        "losses": {
            term: [short(row["losses"][term]) for row in rows] for term in rows[0]["losses"]
        },
        **over_run(watched),
        "tokens": None if without else tokens_entering(folder, recipe),
        "threads": torch.get_num_threads(),
        **{name: facts[name] for name in ("cpu", "torch", "timm", "commit")},
    }


def tokens_entering(folder: Path, recipe: Recipe) -> list[float] | None:
    """Mean number of patch tokens before each block, if it depends on the image."""
    data = load_data("digits")
    model = build_model(from_checkpoint(folder / "last"), recipe, data.num_classes)
    if not any(getattr(module, "depends_on_image", False) for module in model.modules()):
        return None
    loader = evaluation_loader(
        data.test, recipe, batch_size=50, rank=0, processes=1, workers=0, device=torch.device("cpu")
    )
    images, _ = next(iter(loader))
    tokens = flop_distribution(model, images).tokens
    return None if tokens is None else [short(block.mean) for block in tokens]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="SEED")
    parser.add_argument("--epochs", type=int, default=RECIPE.epochs, help="stop after these")
    parser.add_argument("--own", nargs="*", default=[], metavar="NAME=VALUE", help="of the model")
    parser.add_argument("--without", nargs="*", default=[], choices=PARTS, help="of HaloNet")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="of the recipe")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="of the runs")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.models if not timm.is_model(name)]
    if unknown:
        sys.exit(f"no model {', '.join(unknown)}; see efficient-vits list")
    if arguments.without and set(arguments.models) != {"halonet_h0"}:
        sys.exit("--without is for halonet_h0 alone")
    own = dict(map(own_argument, arguments.own))
    settings, without = dict(map(own_argument, arguments.set)), arguments.without
    for seed in arguments.seeds:
        for name in arguments.models:
            folder = arguments.output / "-".join([name, *without, *arguments.set, str(seed)])
            row = run(name, own, without, settings, seed, arguments.epochs, folder)
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
