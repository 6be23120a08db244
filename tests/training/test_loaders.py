import subprocess
import sys

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomCrop

from efficient_vits.training import PRESETS, load_data
from efficient_vits.training.loaders import (
    Ordered,
    evaluation_loader,
    seed_all,
    train_transform,
    training_loader,
)

CPU = torch.device("cpu")


def batches(data, recipe, *, epoch=0, first=0, batch_size=16, **given):
    place = {"rank": 0, "processes": 1, "workers": 0, **given}
    loader = training_loader(data.train, recipe, batch_size=batch_size, seed=3, device=CPU, **place)
    loader.dataset.set_position(epoch, first)
    return list(loader)


def same(left, right):
    assert len(left) == len(right)
    return all(
        torch.equal(a, b)
        for x, y in zip(left, right, strict=True)
        for a, b in zip(x, y, strict=True)
    )


def test_an_epoch_is_the_same_for_any_number_of_workers(few_digits, recipe):
    alone = batches(few_digits, recipe)
    assert same(alone, batches(few_digits, recipe, workers=2))
    assert not same(alone, batches(few_digits, recipe, epoch=1))


def test_an_epoch_can_be_taken_up_in_the_middle(few_digits, recipe):
    whole = batches(few_digits, recipe)
    for first in (1, 2, 3):
        assert same(whole[first:], batches(few_digits, recipe, first=first))
    assert same(whole[1:], batches(few_digits, recipe, first=1, workers=2))


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_each_batch(processes, few_digits, recipe):
    whole = batches(few_digits, recipe)
    shares = [
        batches(few_digits, recipe, rank=rank, processes=processes) for rank in range(processes)
    ]
    for number, (images, targets) in enumerate(whole):
        parts = [share[number] for share in shares]
        assert torch.equal(images, torch.stack([p[0] for p in parts], dim=1).flatten(0, 1))
        assert torch.equal(targets, torch.stack([p[1] for p in parts], dim=1).flatten(0, 1))


def test_every_image_once_per_epoch():
    class Indices(torch.utils.data.Dataset):
        def __len__(self):
            return 50

        def __getitem__(self, index):
            return index, 0

    ordered = Ordered(Indices(), 8, seed=0)
    ordered.transform = lambda index: index
    seen = [index for index, _ in ordered]
    assert len(seen) == len(set(seen)) == len(ordered) == 48  # the last batch is not whole
    ordered.set_position(1)
    assert [index for index, _ in ordered] != seen
    whole = Ordered(Indices(), 8, seed=None)
    whole.transform = lambda index: index
    assert [index for index, _ in whole] == list(range(50))


SPAWNED = """
import multiprocessing, sys
import torch
from efficient_vits.training import PRESETS, load_data
from efficient_vits.training.loaders import training_loader

def epochs(workers):
    loader = training_loader(
        load_data("digits").train, PRESETS["digits"].with_changes(img_size=16), batch_size=448,
        seed=0, rank=0, processes=1, workers=workers, device=torch.device("cpu"),
    )
    for epoch in range(2):
        loader.dataset.set_position(epoch)
        yield torch.cat([images for images, _ in loader])

if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    for one, other in zip(epochs(0), epochs(2), strict=True):
        assert torch.equal(one, other)
"""


def test_workers_that_are_spawned(tmp_path):
    """As on macOS: they get pickles of what loads, and see each epoch's position all the same."""
    script = tmp_path / "script.py"
    script.write_text(SPAWNED)
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr


def test_loading_leaves_the_models_random_numbers_alone(few_digits, recipe):
    seed_all(1)
    undisturbed = torch.rand(3), np.random.rand(3)  # noqa: NPY002
    seed_all(1)
    iterator = iter(Ordered(few_digits.train, 16, seed=0))
    with pytest.raises(TypeError):  # has no transform yet
        next(iterator)
    ordered = Ordered(few_digits.train, 16, seed=0)
    ordered.transform = train_transform(recipe)
    list(ordered)
    assert torch.equal(torch.rand(3), undisturbed[0])
    assert np.array_equal(np.random.rand(3), undisturbed[1])  # noqa: NPY002


@pytest.mark.parametrize("processes", [1, 3])
def test_evaluation_sees_every_image_once(processes, few_digits, recipe):
    seen = sum(
        len(targets)
        for rank in range(processes)
        for _, targets in evaluation_loader(
            few_digits.test,
            recipe,
            batch_size=6,
            rank=rank,
            processes=processes,
            workers=0,
            device=CPU,
        )
    )
    assert seen == 20


def test_the_augmentation_is_the_recipes():
    def kinds(recipe):
        text = repr(train_transform(recipe))
        names = ("RandomHorizontalFlip", "Solarize", "Desaturate", "GaussianBlurRand")
        return [name for name in names if name in text]

    assert kinds(PRESETS["pretrain"]) == [
        "RandomHorizontalFlip", "Solarize", "Desaturate", "GaussianBlurRand",
    ]  # fmt: skip
    assert kinds(PRESETS["digits"]) == ["Desaturate", "GaussianBlurRand"]
    crops = [t for t in train_transform(PRESETS["digits"]).transforms if type(t) is RandomCrop]
    assert [(crop.size, crop.padding, crop.padding_mode) for crop in crops] == [
        ((64, 64), 4, "reflect")
    ]
    resized = PRESETS["digits"].with_changes(crop="resized")
    assert "RandomResizedCrop" in repr(train_transform(resized))


def test_one_of_the_three_augmentations_for_each_image():
    """Solarised, grey or blurred, about a third each: told apart on an image of two colours."""
    from PIL import Image

    recipe = PRESETS["finetune"].with_changes(img_size=32, hflip=0.0, color_jitter=0.0)
    transform = train_transform(recipe.with_changes(mean=(0, 0, 0), std=(1, 1, 1)))
    pixels = np.zeros((32, 32, 3), dtype=np.uint8)
    pixels[:, 16:] = (250, 100, 10)
    image, counts = Image.fromarray(pixels), {"grey": 0, "solarised": 0, "blurred": 0}
    seed_all(0)
    for _ in range(300):
        out = transform(image)
        if torch.allclose(out[0], out[1], atol=0.01):
            counts["grey"] += 1
        elif out[0].max() < 0.5:
            counts["solarised"] += 1
        else:
            counts["blurred"] += 1
    assert all(70 < count < 130 for count in counts.values()), counts


def test_digits_are_split_the_same_way_every_time():
    one, two = load_data("digits"), load_data("digits")
    assert (len(one.train), len(one.test), one.num_classes) == (1347, 450, 10)
    assert np.array_equal(one.test.images, two.test.images)
    image, label = one.train[0]
    assert image.size == (8, 8)
    assert 0 <= label < 10
