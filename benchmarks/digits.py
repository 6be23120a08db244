"""Does each attention learn? One recipe for all of them on scikit-learn's digits.

    python benchmarks/digits.py                       # every mixer, one seed
    python benchmarks/digits.py linear --seeds 3      # some, several seeds
    python benchmarks/digits.py performer --own eps=1e-6 --learning-rate 2e-2      # an ablation
    python benchmarks/digits.py halonet_h0 --own "depths=(1,1,2,1)" width=32 block_size=4

Digits at 64 px, ViT-Ti/16 cut to 4 blocks (17 tokens), batch 64, 5 epochs, LAMB, no flip or CutMix.
Everything else is the benchmark's fine-tuning recipe: eps 1e-7, weight decay 0.02, cosine schedule
stepped per update with one epoch of warm-up, gradient clipping at 1, label smoothing 0.1, drop path
0.05, LayerScale 1e-4. The learning rate is 1e-2, for 105 updates from nothing are no fine-tuning. A
row: test accuracy, largest norm of the residual stream after any block over the training, smallest
and largest gradient norm of a block in the last epoch, smallest normaliser over the training (of
mixers that divide by a sum of kernel features), seconds.
"""

import argparse
import ast
import contextlib
import json
import math
import sys
import time
import warnings
from collections.abc import Iterator
from typing import Any
from unittest import mock

import timm
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn

from efficient_vits import auxiliary_loss
from efficient_vits.attention import _kernels, attention_traits, linear, list_attentions, performer

BATCH, LEARNING_RATE = 64, 1e-2


def digits(seed: int) -> list[Tensor]:
    """Train images (N, 3, 64, 64), test images, train labels (N), test labels."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 8 - 1
    images = F.interpolate(images, size=(64, 64), mode="bilinear").expand(-1, 3, -1, -1)
    labels = torch.tensor(data.target)
    return train_test_split(images, labels, test_size=0.25, stratify=labels, random_state=seed)


def build(attention: str, own: dict[str, Any]) -> nn.Module:
    """A ViT with this mixer, or the model of this name."""
    if timm.is_model(attention):
        return timm.create_model(attention, num_classes=10, drop_path_rate=0.05, **own)
    arguments: dict[str, Any] = {"attention": attention, **own}
    traits = attention_traits(attention)
    if not (traits.prefix_tokens and traits.mixes_prefix):
        arguments.update(class_token=False, global_pool="avg")
    return timm.create_model(
        "vit_ti16", img_size=64, depth=4, num_classes=10, drop_path_rate=0.05, **arguments
    )


def blocks_of(model: Any) -> list[nn.Module]:
    """The blocks of a ViT, the stages of a pyramid."""
    return list(getattr(model, "blocks", None) or model.stages)


def block_norms(model: nn.Module) -> list[float]:
    """Gradient norm of each block."""
    return [
        float(torch.stack([p.grad.norm() for p in block.parameters() if p.grad is not None]).norm())
        for block in blocks_of(model)
    ]


@contextlib.contextmanager
def smallest_normaliser() -> Iterator[list[float]]:
    """A list of one number: the smallest sum that kernel attention divided by meanwhile."""
    smallest = [math.inf]

    def watched(q: Tensor, k: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        total = k.detach().float().sum(dim=2, keepdim=True)
        normaliser = (q.detach().float() * total).sum(dim=-1) + eps
        smallest[0] = min(smallest[0], float(normaliser.min()))
        return _kernels.shares(q, k, eps)

    patches = [mock.patch.object(mixer, "shares", watched) for mixer in (linear, performer)]
    with patches[0], patches[1]:
        yield smallest


def train(
    attention: str, seed: int, epochs: int, learning_rate: float, own: dict[str, Any]
) -> dict[str, Any]:
    torch.manual_seed(seed)
    train_images, test_images, train_labels, test_labels = digits(seed)
    model = build(attention, own).train()
    optimizer = create_optimizer_v2(
        model, opt="lamb", lr=learning_rate, weight_decay=0.02, eps=1e-7
    )
    steps = len(train_images) // BATCH
    schedule = CosineLRScheduler(
        optimizer,
        t_initial=epochs * steps,
        lr_min=1e-5,
        warmup_t=steps,
        warmup_lr_init=1e-6,
        warmup_prefix=True,
        t_in_epochs=False,
    )
    largest = 0.0

    def watch(module: nn.Module, args: Any, output: Tensor) -> None:
        nonlocal largest
        channels = 1 if output.ndim == 4 else -1
        largest = max(largest, float(output.detach().norm(dim=channels).max()))

    for block in blocks_of(model):
        block.register_forward_hook(watch)
    began, update, gradients = time.perf_counter(), 0, [[0.0]]
    for _ in range(epochs):
        gradients = []
        for batch in torch.randperm(len(train_images))[: steps * BATCH].split(BATCH):
            schedule.step_update(update)
            update += 1
            logits = model(train_images[batch])
            loss = F.cross_entropy(logits, train_labels[batch], label_smoothing=0.1)
            loss = loss + auxiliary_loss(model)
            optimizer.zero_grad()
            loss.backward()
            gradients.append(block_norms(model))
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    seconds = time.perf_counter() - began
    model.eval()
    with torch.inference_mode():
        hits = model(test_images).argmax(dim=1) == test_labels
    return {
        "attention": attention,
        "seed": seed,
        "accuracy": hits.float().mean().item(),
        "last_loss": loss.item(),
        "largest_activation": largest,
        "smallest_gradient": min(min(step) for step in gradients),
        "largest_gradient": max(max(step) for step in gradients),
        "seconds": seconds,
    }


def own_argument(text: str) -> tuple[str, Any]:
    """``name=value``, the value a Python literal or else a string."""
    name, _, value = text.partition("=")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def shown(normaliser: float | None) -> str:
    return " " * 10 if normaliser is None else f"{normaliser:10.1e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("attentions", nargs="*", metavar="NAME", help="mixers (all) or models")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--learning-rate", type=float, default=LEARNING_RATE)
    parser.add_argument(
        "--own", nargs="*", default=[], metavar="NAME=VALUE", help="arguments of the mixer"
    )
    parser.add_argument("--json", action="store_true", help="one JSON line per run")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*lr_scheduler.*")
    names = arguments.attentions or list_attentions()
    unknown = [n for n in names if n not in list_attentions() and not timm.is_model(n)]
    if unknown:
        sys.exit(f"unknown: {', '.join(unknown)}; mixers are {', '.join(list_attentions())}")
    own = dict(map(own_argument, arguments.own))
    if not arguments.json:
        print(
            "attention         seed  accuracy    loss  activation  gradients          normaliser  "
            "seconds"
        )
    for name in names:
        for seed in range(arguments.seeds):
            with smallest_normaliser() as normaliser:
                row = train(name, seed, arguments.epochs, arguments.learning_rate, own)
            row["smallest_normaliser"] = None if math.isinf(normaliser[0]) else normaliser[0]
            row.update(own, learning_rate=arguments.learning_rate, epochs=arguments.epochs)
            if arguments.json:
                print(json.dumps(row), flush=True)
                continue
            print(
                f"{name:<16} {seed:>5} {row['accuracy']:>9.1%} {row['last_loss']:>7.3f} "
                f"{row['largest_activation']:>11.1f}  {row['smallest_gradient']:.1e} - "
                f"{row['largest_gradient']:.1e}  {shown(row['smallest_normaliser'])} "
                f"{row['seconds']:>8.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
