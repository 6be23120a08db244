from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from efficient_vits.training import Data, Options, Recipe, Start, load_data, train


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Few(torch.utils.data.Dataset[Any]):
    """The first images of a data set."""

    def __init__(self, whole: Any, count: int) -> None:
        self.whole, self.count = whole, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.whole[index]


@pytest.fixture(scope="session")
def few_digits() -> Data:
    """48 images to learn from, 20 to test on."""
    whole = load_data("digits")
    return Data(Few(whole.train, 48), Few(whole.test, 20), 10, "few digits")


@pytest.fixture
def recipe() -> Recipe:
    return Recipe(
        name="tiny",
        epochs=2,
        warmup_epochs=1,
        batch_size=16,
        img_size=32,
        lr=3e-3,
        cutmix=0.0,
        drop_path_rate=0.1,
    )


@pytest.fixture
def tiny() -> Start:
    return Start("vit_ti16", {"depth": 2, "embed_dim": 32, "num_heads": 2})


@pytest.fixture
def run(tmp_path: Path, few_digits: Data, recipe: Recipe, tiny: Start) -> Callable[..., Any]:
    """Trains the tiny model; what is given differs."""

    def run(output: str = "run", **given: Any) -> dict[str, Any]:
        what = {"start": tiny, "data": few_digits, "recipe": recipe, **given}
        options = what.pop("options", Options())
        return train(output=tmp_path / output, options=options, cpu=True, **what)

    return run
