"""FLOPs of a model whose cost depends on the image: mean and spread over a set of images."""

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from efficient_vits.efficiency.flops import count_flops
from efficient_vits.efficiency.inputs import check_images, device_of, dtype_of, evaluating


@dataclasses.dataclass(frozen=True)
class Spread:
    """How a figure differs from image to image.

    Attributes:
        mean: over the images.
        std: standard deviation over the images, 0 for a single one.
        minimum: of all images.
        maximum: of all images.
    """

    mean: float
    std: float
    minimum: float
    maximum: float


@dataclasses.dataclass(frozen=True)
class FlopDistribution:
    """Floating-point operations per image, over a set of images; a multiply-add is one.

    Attributes:
        images: how many images were counted, each on its own.
        flops: operations that are done, without what is skipped.
        masked: operations where what would be skipped is computed and masked; the same for every
            image.
        tokens: distinct patch tokens that enter each block; None where the model has no
            ``token_maps``.
        tokens_per_block: mean over the blocks of the patch tokens that enter one; None likewise.
        uncounted: how often each operator without a rule was met, over all images.
    """

    images: int
    flops: Spread
    masked: int
    tokens: tuple[Spread, ...] | None
    tokens_per_block: Spread | None
    uncounted: dict[str, int]

    @property
    def skipped(self) -> float:
        """The part of the masked operations that is skipped on the average image, 0 to 1."""
        return 1 - self.flops.mean / self.masked if self.masked else 0.0


def flop_distribution(model: nn.Module, images: Tensor) -> FlopDistribution:
    """Counts the operations for each of these images, in eval mode, without gradients.

    Every image runs on its own, so that none is padded to the length of another: in a batch the
    image with the most tokens decides. For a model whose cost does not depend on the image all
    figures are the same.

    Args:
        model: any module that `count_flops` takes, on a device with values. Modules that skip work
            declare ``depends_on_image`` and have a switch ``dynamic``, which decides here as
            everywhere whether they do. A method ``token_maps(images)``, if there is one, gives a
            tensor (images, patches) for each block: the token that each patch is in afterwards, -1
            for none.
        images: (images, channels, height, width), normalised as the model expects.

    Raises:
        TypeError, ValueError, RuntimeError: as `count_flops`; ValueError for a model on the meta
            device, which has no values to decide by.
    """
    check_images(images)
    if device_of(model).type == "meta":
        raise ValueError(
            f"{type(model).__name__} is on the meta device: what it skips depends on its values"
        )
    counts = [count_flops(model, images=image) for image in images.split(1)]
    uncounted: dict[str, int] = {}
    for count in counts:
        for name, times in count.uncounted.items():
            uncounted[name] = uncounted.get(name, 0) + times
    tokens = _tokens_entering(model, images)
    blocks = per_block = None
    if tokens is not None:
        blocks = tuple(_spread(block) for block in zip(*tokens, strict=True))
        per_block = _spread([statistics.fmean(image) for image in tokens])
    return FlopDistribution(
        images=len(counts),
        flops=_spread([count.total for count in counts]),
        masked=count_flops(model, images.shape[1:]).total,
        tokens=blocks,
        tokens_per_block=per_block,
        uncounted=uncounted,
    )


def _tokens_entering(model: Any, images: Tensor) -> list[list[int]] | None:
    """For each image and block the patch tokens that enter it; None if the model does not say."""
    if not hasattr(model, "token_maps"):
        return None
    tokens = []
    with evaluating(model), torch.no_grad():
        for image in images.to(device_of(model), dtype_of(model)).split(1):
            maps = model.token_maps(image)
            after = [int(one[one >= 0].unique().numel()) for one in maps]
            tokens.append([maps[0].shape[1], *after[:-1]])
    return tokens


def _spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.fmean(values), statistics.pstdev(values), min(values), max(values))
