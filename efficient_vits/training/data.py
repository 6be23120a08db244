"""Data sets for training: scikit-learn's digits, and whatever timm reads."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from timm.data import ImageDataset, IterableImageDataset, create_dataset
from torch.utils.data import Dataset, IterableDataset

DIGITS = "digits"


class DataError(ValueError):
    """A data set that can't be read or doesn't suit the run."""


@dataclass(frozen=True)
class Data:
    """A data set in two parts.

    Attributes:
        train: Yields (image, label); an `IterableDataset` where it can only be streamed.
        test: Likewise; what accuracies are measured on.
        num_classes: Labels are 0 to `num_classes` - 1.
        name: What it is called in results.
    """

    train: Dataset[Any]
    test: Dataset[Any]
    num_classes: int
    name: str


class Digits(Dataset[Any]):
    """Scikit-learn's 1797 handwritten digits as RGB images of 8 x 8 pixels; a quarter is for tests.

    The split is the same every time. Source: E. Alpaydin and C. Kaynak, Optical Recognition of
    Handwritten Digits, UCI repository (CC BY 4.0).
    """

    def __init__(self, *, train: bool) -> None:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        digits = load_digits()
        parts = train_test_split(
            digits.images, digits.target, test_size=0.25, stratify=digits.target, random_state=0
        )
        self.images, self.targets = parts[0::2] if train else parts[1::2]
        self.transform: Any = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        grey = np.round(self.images[index] * 255 / 16).astype(np.uint8)
        image: Any = Image.fromarray(grey).convert("RGB")
        if self.transform is not None:
            image = self.transform(image)
        return image, int(self.targets[index])


class Intact(Dataset[Any]):
    """A data set of timm's, in which an image that can't be read is an error.

    timm puts the next image in its place and writes that to its log: right for training, where one
    file among millions should stop nothing, and wrong for an accuracy.
    """

    def __init__(self, dataset: ImageDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        try:
            file, target, *_ = self.dataset.reader[index]
            with file:
                image = Image.open(file).convert("RGB")
        except OSError as error:
            name = self.dataset.filename(index) or f"number {index}"
            raise DataError(f"can't read the image {name}: {error}") from error
        return image, self.dataset.target_transform(target)


class Label:
    """Passes on labels, and refuses those that are no class."""

    def __init__(self, num_classes: int, split: str) -> None:
        self.num_classes, self.split = num_classes, split

    def __call__(self, target: int) -> int:
        if not 0 <= target < self.num_classes:
            raise DataError(
                f"split {self.split!r} has label {target}; with {self.num_classes} classes, labels "
                f"are 0 to {self.num_classes - 1}"
            )
        return target


def load_data(
    source: str,
    *,
    train_split: str = "train",
    test_split: str = "validation",
    num_classes: int | None = None,
) -> Data:
    """A data set by name or path.

    Args:
        source: "digits"; a folder that has a folder per split with a folder of images per class; or
            NAME:ROOT with a name that timm's `create_dataset` knows, such as
            "hfds/uoft-cs/cifar10:CACHE", "torch/cifar10:FOLDER" or "wds/shards:FOLDER".
        train_split: What is trained on. In a folder it may be an archive, such as "train.tar", of
            a folder of images per class.
        test_split: What is evaluated on.
        num_classes: How many there are; by default as many as the training part says it has.

    Raises:
        DataError: There is nothing there; it doesn't say how many classes it has; or two parts of a
            folder have images in common, or the tests a class that is not trained on.
    """
    if source == DIGITS:
        return Data(Digits(train=True), Digits(train=False), 10, DIGITS)
    name, root = _split(source)
    if not name and not Path(root).exists():
        raise DataError(
            f"no data at {source!r}; accepted are 'digits', a folder, and names of timm's with a "
            f"root, such as hfds/uoft-cs/cifar10:CACHE or torch/cifar10:FOLDER"
        )
    train = _part(name, root, train_split, is_training=True)
    test = _part(name, root, test_split, is_training=False)
    if not name and train_split != test_split:
        test = _matching(train, test, root, (train_split, test_split))
    classes = num_classes or _count_classes(train)
    if classes is None:
        raise DataError(
            f"{source!r} doesn't say how many classes it has: give their number "
            f"(num_classes=..., --num-classes)"
        )
    for part, split in ((train, train_split), (test, test_split)):
        if isinstance(part, ImageDataset | IterableImageDataset):
            part.target_transform = Label(classes, split)
    if isinstance(test, ImageDataset):
        test = Intact(test)
    return Data(train, test, classes, name or Path(root).resolve().name)


def _split(source: str) -> tuple[str, str]:
    """timm's name, empty for a folder, and the root."""
    name, colon, root = source.partition(":")
    is_name = bool(colon) and name.partition("/")[0] in ("torch", "hfds", "hfids", "tfds", "wds")
    return (name, root) if is_name else ("", source)


def _part(name: str, root: str, split: str, **given: Any) -> Any:
    try:
        part: Any = create_dataset(name, root=root, split=split, **given)
    except Exception as error:  # each reader has errors of its own
        raise DataError(
            f"can't read split {split!r} of {name or root}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(part, IterableDataset) and not len(part):
        raise DataError(f"split {split!r} of {name or root} has no images")
    reader: Any = getattr(part, "reader", None)
    if hasattr(reader, "cache_tarfiles"):
        # An archive that is open when workers are forked would have one position for all of them.
        reader.cache_tarfiles = False
    return part


def _matching(train: Any, test: Any, root: str, splits: tuple[str, str]) -> Any:
    """The test part, its labels numbered as in the training part."""
    common = _paths(train) & _paths(test)
    if common:
        raise DataError(
            f"splits {splits[0]!r} and {splits[1]!r} of {root} have {len(common)} images in "
            f"common: each needs a folder or an archive of its own"
        )
    own, known = _class_indices(test), _class_indices(train)
    unknown = sorted(own.keys() - known.keys())
    if unknown:
        raise DataError(f"split {splits[1]!r} of {root} has classes of its own: {unknown[:5]}")
    # timm numbers the classes that a split has; one may be missing in a small split.
    same = own == known
    return test if same else _part("", root, splits[1], is_training=False, class_map=known)


def _paths(part: Any) -> set[str]:
    """Where the images are; for those in an archive, under the archive's path."""
    names, root = part.filenames(absolute=True), Path(part.reader.root)
    return {str(root / name) for name in names} if root.is_file() else {*names}


def _class_indices(part: Any) -> dict[str, int]:
    """The number of each class by name; empty if the data doesn't name them."""
    reader = getattr(part, "reader", None)
    # timm's reader of archives has a name of its own for it.
    owners = ((reader, "class_to_idx"), (reader, "class_name_to_idx"), (part, "class_to_idx"))
    return next((found for owner, name in owners if (found := getattr(owner, name, None))), {})


def _count_classes(part: Any) -> int | None:
    indices = _class_indices(part)
    return max(indices.values()) + 1 if indices else None
