"""Batches for training and evaluation, by timm's loader, in an order of our own.

What an epoch sees follows from the seed alone: the order of the images, and each image's random
augmentation. Both are the same for any number of worker processes and of training processes, and
an epoch can be taken up in the middle without loading what came before. Streamed data sets keep
their own order.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from timm.data import (
    AutoAugment,
    auto_augment_policy,
    create_loader,
    create_transform,
)
from torch.utils.data import IterableDataset, get_worker_info
from torchvision.transforms import Compose, InterpolationMode, RandomCrop, Resize

from efficient_vits.training.recipe import Augmentation, Recipe
from efficient_vits.training.streams import stream_share

_POLICIES: dict[Augmentation, str] = {
    "grayscale": "Desaturate",
    "solarize": "Solarize",
    "blur": "GaussianBlurRand",
}
_PADDING = 4  # pixels that the simple random crop adds on every side, as DeiT III does


def mixed_seed(*parts: int) -> int:
    """A seed of 32 bits from several numbers, far from those of similar numbers."""
    return int(np.random.SeedSequence([part % 2**32 for part in parts]).generate_state(1)[0])


def seed_all(*parts: int) -> None:
    """Seeds Python's, NumPy's and torch's generators (of all devices) from these numbers."""
    seed = mixed_seed(*parts)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - what timm's augmentations draw from
    torch.manual_seed(seed)


@contextmanager
def _own_randomness(seed: int) -> Iterator[None]:
    """The generators that augmentations draw from begin with `seed`, and are as before after."""
    states = (
        random.getstate(),
        np.random.get_state(),  # noqa: NPY002
        torch.random.get_rng_state(),
    )
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    # Not torch.manual_seed, which would seed the accelerators too.
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.random.set_rng_state(states[2])


class Ordered(IterableDataset[Any]):
    """This process' share of a data set, in whole batches, one epoch per iteration.

    The `k`-th batch of all processes together is the `k`-th stretch of the epoch's order, and each
    process has every `processes`-th image of it; what is left of a last batch is not trained on.

    Args:
        dataset: Has a length, an index and an attribute ``transform``.
        batch_size: Images of one batch of all processes together; a multiple of `processes`.
        seed: Of the order and of the augmentations; None for the data set's own order, all of it,
            and no random augmentation.
        rank: Number of this process.
        processes: How many there are.
    """

    def __init__(
        self, dataset: Any, batch_size: int, *, seed: int | None, rank: int = 0, processes: int = 1
    ) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.rank, self.processes = rank, processes
        # In shared memory, so that worker processes that live on see the next epoch.
        self._position = torch.zeros(2, dtype=torch.int64).share_memory_()
        self.transform: Any = None

    @property
    def batches(self) -> int:
        """Batches of an epoch."""
        size = len(self.dataset)
        return size // self.batch_size if self.seed is not None else -(-size // self.batch_size)

    def set_position(self, epoch: int, batch: int = 0) -> None:
        """The next iteration is this epoch's, from this batch on."""
        self._position.copy_(torch.tensor([epoch, batch]))

    def __len__(self) -> int:
        left = self.batches - int(self._position[1])
        return max(left, 0) * (self.batch_size // self.processes)

    def __iter__(self) -> Iterator[Any]:
        epoch, first = self._position.tolist()
        order = self._order(epoch)
        worker = get_worker_info()
        # The loader takes batches from its workers in turn.
        offset, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for batch in range(first + offset, self.batches, step):
            whole = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            for index in whole[self.rank :: self.processes]:
                yield self._sample(int(index), epoch)

    def _order(self, epoch: int) -> Sequence[int]:
        if self.seed is None:
            return range(len(self.dataset))
        generator = np.random.default_rng(mixed_seed(self.seed, epoch))
        return generator.permutation(len(self.dataset)).tolist()

    def _sample(self, index: int, epoch: int) -> Any:
        if self.seed is None:
            image, target = self.dataset[index]
            return self.transform(image), target
        with _own_randomness(mixed_seed(self.seed, epoch, index)):
            image, target = self.dataset[index]
            return self.transform(image), target


def _share(
    dataset: Any, batch_size: int, seed: int | None, rank: int, processes: int, workers: int
) -> Any:
    """This process' share of a data set, as an `IterableDataset`."""
    if isinstance(dataset, IterableDataset):
        own = batch_size // processes
        return stream_share(
            dataset, batch_size=own, rank=rank, processes=processes, workers=workers
        )
    return Ordered(dataset, batch_size, seed=seed, rank=rank, processes=processes)


def training_loader(
    dataset: Any,
    recipe: Recipe,
    *,
    batch_size: int,
    seed: int,
    rank: int,
    processes: int,
    workers: int,
    device: torch.device,
) -> Any:
    """timm's loader over augmented images.

    Its ``dataset`` (for data with an index) is an `Ordered`, on which each epoch is set.

    Args:
        dataset: As in `Data.train`.
        recipe: Size, normalisation and augmentation.
        batch_size: Images per batch of all processes together.
        seed: Of order and augmentation.
        rank: Number of this process of `processes`.
        processes: How many there are.
        workers: Processes that load images; 0 loads in this one.
        device: Where batches are needed.
    """
    prefetch = device.type == "cuda"
    dataset = _share(dataset, batch_size, seed, rank, processes, workers)
    loader = create_loader(
        dataset,
        input_size=(3, recipe.img_size, recipe.img_size),
        batch_size=batch_size // processes,
        is_training=True,
        mean=recipe.mean,
        std=recipe.std,
        num_workers=workers,
        distributed=processes > 1,
        device=device,
        use_prefetcher=prefetch,
        pin_memory=prefetch,
    )
    # timm's factory has no simple random crop and no choice among the three augmentations.
    dataset.transform = train_transform(recipe, prefetch=prefetch)
    return loader


def evaluation_loader(
    dataset: Any,
    recipe: Recipe,
    *,
    batch_size: int,
    rank: int,
    processes: int,
    workers: int,
    device: torch.device,
) -> Any:
    """timm's loader over the whole images, resized to the shorter side and cropped in the middle.

    Every image is seen once, in one of the processes.
    """
    dataset = _share(dataset, batch_size, None, rank, processes, workers)
    prefetch = device.type == "cuda"
    return create_loader(
        dataset,
        input_size=(3, recipe.img_size, recipe.img_size),
        batch_size=batch_size // processes,
        is_training=False,
        interpolation="bicubic",
        crop_pct=1.0,
        mean=recipe.mean,
        std=recipe.std,
        num_workers=workers,
        distributed=processes > 1,
        device=device,
        use_prefetcher=prefetch,
        pin_memory=prefetch,
    )


def train_transform(recipe: Recipe, *, prefetch: bool = False) -> Compose:
    """Crop, flip, one of the three augmentations, colour jitter, normalisation, in this order.

    Args:
        recipe: Which of them, and how strong.
        prefetch: Give bytes that timm's prefetcher normalises on the accelerator.
    """
    size = recipe.img_size
    crop_and_flip, jitter, to_tensor = create_transform(
        (3, size, size),
        is_training=True,
        hflip=recipe.hflip,
        color_jitter=recipe.color_jitter,
        interpolation="bicubic",
        mean=recipe.mean,
        std=recipe.std,
        use_prefetcher=prefetch,
        separate=True,
    )
    first = [crop_and_flip]
    if recipe.crop == "simple":
        flip = crop_and_flip.transforms[1:]  # the first is timm's own crop
        crop = RandomCrop(size, padding=_PADDING, padding_mode="reflect")
        first = [Resize(size, interpolation=InterpolationMode.BICUBIC), crop, *flip]
    chosen = {_POLICIES[name] for name in recipe.three_augment}
    policy = [one for one in auto_augment_policy("3a") if one[0].name in chosen]
    return Compose([*first, *([AutoAugment(policy)] if policy else []), jitter, to_tensor])
