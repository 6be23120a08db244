"""Scaling the model against scaling the image, and pre-training at 192 against 224 pixels."""

import statistics
from dataclasses import dataclass
from typing import Any

from efficient_vits.results.metrics import metric
from efficient_vits.results.runs import Run, as_rows

# The columns of the supplement's Figure 6: the smaller model and the next larger one.
PAIRS = (
    ("vit_ti16", "vit_s16"),
    ("vit_s16", "vit_b16"),
    ("focalnet_tiny_srf", "focalnet_small_srf"),
    ("afno_ti16", "afno_s16"),
)

# Its rows. Memory at batch 1 was not published for AFNO; batch 64 was for all.
COSTS = ("throughput", "training_time", "memory", "memory_64", "training_memory")


@dataclass(frozen=True)
class Scaling:
    """Two ways to make a model more accurate, by one metric.

    Attributes:
        metric: The cost.
        start: The small model on small images.
        image: The small model on large images.
        model: The large model on small images.
    """

    metric: str
    start: Run
    image: Run
    model: Run

    @property
    def better(self) -> str:
        """``"model"`` or ``"image"`` if that way dominates the other; ``"neither"`` if one is
        more accurate and the other cheaper."""
        sign = 1 if metric(self.metric).direction == "max" else -1
        gain = (self.model.top1 or 0) - (self.image.top1 or 0)
        saving = sign * (
            (self.model.value(self.metric) or 0) - (self.image.value(self.metric) or 0)
        )
        if gain >= 0 and saving >= 0 and (gain or saving):
            return "model"
        if gain <= 0 and saving <= 0 and (gain or saving):
            return "image"
        return "neither"

    def cost(self, way: str) -> float:
        """Factor by which the figure of ``"image"`` or ``"model"`` exceeds the start's.

        Raises:
            ValueError: Another way.
        """
        if way not in ("image", "model"):
            raise ValueError(f"a way to scale is 'image' or 'model', got {way!r}")
        run = self.image if way == "image" else self.model
        return (run.value(self.metric) or 0) / (self.start.value(self.metric) or 1)


def model_or_image(small: str, large: str, runs: Any = None) -> list[Scaling]:
    """Scaling the image at the small model against scaling the model, by each of `COSTS`.

    All runs are pre-trained at 224 pixels; of several the most accurate one counts.

    Args:
        small: Name of the smaller model.
        large: Name of the larger one.
        runs: A frame of `load_runs`, or runs; by default the benchmark's.

    Returns:
        One entry per metric that all three runs have.

    Raises:
        ValueError: One of the three was not run.
    """
    rows = [run for run in as_rows(runs) if run.pretrain_size == 224 and run.top1 is not None]
    start, image, model = (
        _best(rows, small, large_images=False),
        _best(rows, small, large_images=True),
        _best(rows, large, large_images=False),
    )
    return [
        Scaling(name, start, image, model)
        for name in COSTS
        if None not in (start.value(name), image.value(name), model.value(name))
    ]


@dataclass(frozen=True)
class Pretraining:
    """One model pre-trained at 192 and at 224 pixels, and fine-tuned at 224.

    Attributes:
        name: The model.
        small: Mean top-1 accuracy in per cent after 192 pixels.
        large: After 224 pixels.
    """

    name: str
    small: float
    large: float

    @property
    def difference(self) -> float:
        """Points that the smaller images gain; negative where they lose."""
        return self.small - self.large


def pretraining_sizes(runs: Any = None) -> list[Pretraining]:
    """Models that were pre-trained at both sizes, by rising difference.

    Args:
        runs: A frame of `load_runs`, or runs; by default the benchmark's.
    """
    accuracies: dict[str, dict[int, list[float]]] = {}
    for run in as_rows(runs):
        if run.img_size == 224 and run.top1 is not None and run.pretrain_size in (192, 224):
            by_size = accuracies.setdefault(run.name, {})
            by_size.setdefault(run.pretrain_size, []).append(run.top1)
    found = [
        Pretraining(name, statistics.mean(by_size[192]), statistics.mean(by_size[224]))
        for name, by_size in accuracies.items()
        if len(by_size) == 2
    ]
    return sorted(found, key=lambda entry: entry.difference)


def _best(rows: list[Run], name: str, *, large_images: bool) -> Run:
    chosen = [
        run
        for run in rows
        if run.name == name
        and (run.img_size == 224 if not large_images else run.img_size in (382, 384))
    ]
    if not chosen:
        size = "384 or 382" if large_images else "224"
        raise ValueError(f"no run of {name!r} at {size} px, pre-trained at 224 px")
    return max(chosen, key=lambda run: run.top1 or 0)
