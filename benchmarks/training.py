"""Training throughput of our Trainer over a plain loop of timm's public parts, in one run.

    python benchmarks/training.py                          # vit_s16 against vit_small_patch16_224
    python benchmarks/training.py hydra_s16 --batch-size 32 --workers 8

Both sides load the same images in memory through timm's loader, with the same crop, flip, choice of
three augmentations, colour jitter and CutMix, and train with LAMB under a cosine schedule with
clipped gradients, on CUDA with float16 and scaled gradients. A round is an epoch of each, in turn,
so that what disturbs the machine disturbs both; the ratio is the median over the rounds, its range
stands behind it. The first epoch of each, in which loading processes start, does not count.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import timm
import torch
from accelerate import Accelerator
from PIL import Image
from timm.data import Mixup, create_loader
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import NativeScaler
from torch.utils.data import Dataset

from efficient_vits.training import Recipe, Start, Trainer, build_model, plan_batches
from efficient_vits.training.loaders import training_loader

CLASSES = 1000


class Images(Dataset[Any]):
    """Random images that are twice as large as needed."""

    def __init__(self, count: int, size: int) -> None:
        generator = np.random.default_rng(0)
        noise = generator.integers(0, 256, (min(count, 64), 2 * size, 2 * size, 3), np.uint8)
        self.images = [Image.fromarray(one) for one in noise]
        self.count = count
        self.transform: Any = None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image: Any = self.images[index % len(self.images)]
        return (image if self.transform is None else self.transform(image)), index % CLASSES


def ours(name: str, data: Images, recipe: Recipe, workers: int) -> Callable[[int], None]:
    """A function that trains an epoch of this number with our Trainer."""
    accelerator = Accelerator()
    model = build_model(Start(name), recipe, CLASSES).to(accelerator.device)
    loader = training_loader(
        data,
        recipe,
        batch_size=recipe.batch_size,
        seed=0,
        rank=0,
        processes=1,
        workers=workers,
        device=accelerator.device,
    )
    trainer = Trainer(
        model,
        recipe,
        plan_batches(recipe.batch_size, 1),
        updates_per_epoch=len(loader),
        num_classes=CLASSES,
        seed=0,
        accelerator=accelerator,
    )

    def epoch(number: int) -> None:
        loader.dataset.set_position(number)
        for _ in trainer.epoch(loader, number):
            pass

    return epoch


def plain(name: str, data: Images, recipe: Recipe, workers: int) -> Callable[[int], None]:
    """A function that trains an epoch of this number as a script on timm would."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.type == "cuda"
    model = timm.create_model(
        name,
        num_classes=CLASSES,
        img_size=recipe.img_size,
        drop_path_rate=recipe.drop_path_rate,
        init_values=recipe.layer_scale,
    ).to(device)
    loader = create_loader(
        data,
        input_size=(3, recipe.img_size, recipe.img_size),
        batch_size=recipe.batch_size,
        is_training=True,
        color_jitter=recipe.color_jitter,
        auto_augment="3a",
        interpolation="bicubic",
        num_workers=workers,
        device=device,
        use_prefetcher=on_gpu,
        pin_memory=on_gpu,
    )
    optimizer = create_optimizer_v2(
        model, opt="lamb", lr=recipe.lr, weight_decay=recipe.weight_decay, eps=recipe.optimizer_eps
    )
    schedule = CosineLRScheduler(
        optimizer, t_initial=recipe.epochs * len(loader), lr_min=recipe.min_lr, t_in_epochs=False
    )
    mixup = Mixup(mixup_alpha=0.0, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=CLASSES)
    criterion, scaler = SoftTargetCrossEntropy(), NativeScaler(device=device.type)

    def epoch(number: int) -> None:
        model.train()
        for index, (images, targets) in enumerate(loader):
            images, targets = mixup(images.to(device), targets.to(device))
            with torch.autocast(device.type, torch.float16, enabled=on_gpu):
                loss = criterion(model(images), targets)
            if on_gpu:
                scaler(loss, optimizer, clip_grad=recipe.clip_grad, parameters=model.parameters())
            else:
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_grad)
                optimizer.step()
            optimizer.zero_grad()
            schedule.step_update(number * len(loader) + index + 1)

    return epoch


def seconds(epoch: Callable[[int], None], number: int) -> float:
    """Time of an epoch."""
    began = time.perf_counter()
    epoch(number)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="vit_s16", metavar="NAME")
    parser.add_argument("--baseline", default="vit_small_patch16_224", help="a ViT of timm's")
    parser.add_argument("--img-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--updates", type=int, default=8, help="of a round, on each side")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=0, help="processes that load images")
    arguments = parser.parse_args()
    for name in (arguments.model, arguments.baseline):
        if not timm.is_model(name):
            sys.exit(f"no model {name}; see efficient-vits list")
    recipe = Recipe(
        img_size=arguments.img_size,
        batch_size=arguments.batch_size,
        epochs=arguments.rounds + 1,
        warmup_epochs=0,
        crop="resized",
    )
    images = arguments.updates * arguments.batch_size
    timms, own = f"timm: {arguments.baseline}", f"ours: {arguments.model}"
    sides = {
        timms: plain(
            arguments.baseline, Images(images, recipe.img_size), recipe, arguments.workers
        ),
        own: ours(arguments.model, Images(images, recipe.img_size), recipe, arguments.workers),
    }
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(recipe.epochs):
        for name, epoch in sides.items():
            took = seconds(epoch, number)
            if number:
                speeds[name].append(images / took)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    threads = f", {torch.get_num_threads()} threads" if device == "cpu" else ""
    print(f"{device}{threads}, batch {arguments.batch_size}, torch {torch.__version__}")
    print(f"{'model':<32}{'images/s':>10}{'ratio':>8}  range")
    for name, seen in speeds.items():
        ratios = [a / b for a, b in zip(seen, speeds[timms], strict=True)]
        print(
            f"{name:<32}{statistics.median(seen):>10.1f}{statistics.median(ratios):>8.2f}"
            f"  {min(ratios):.2f} - {max(ratios):.2f}"
        )


if __name__ == "__main__":
    main()
