from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from efficient_vits.cli._weights import shorten
from efficient_vits.weights import WeightsError


@pytest.fixture
def refused_weights(refused: Callable[..., str], tmp_path: Path) -> Callable[..., str]:
    image, path = tmp_path / "a.png", tmp_path / "weights.pt"
    Image.new("RGB", (64, 64)).save(image)

    def refused_weights(content: object, name: str = "hydra_ti16") -> str:
        torch.save(content, path)
        size = ("--img-size", "64")
        return refused("predict", name, image, "--weights", path, *size)

    return refused_weights


@pytest.fixture
def state(weights: Path) -> dict[str, torch.Tensor]:
    content: dict[str, dict[str, torch.Tensor]] = torch.load(weights)
    return content["model"]


def test_what_does_not_fit_is_named(
    refused_weights: Callable[..., str], state: dict[str, torch.Tensor]
) -> None:
    del state["blocks.3.norm1.weight"]
    for index in range(5):
        state[f"alien{index}"] = torch.zeros(1)
    state["head.bias"] = torch.zeros(11)
    line = refused_weights(state)
    assert "missing (1): blocks.3.norm1.weight; " in line
    assert "unexpected (5): alien0, alien1, alien2, ...; " in line
    assert "of another shape (1): head.bias (11,), want (10,)\n" in line


@pytest.mark.parametrize("content", [{}, {"head.weight": torch.tensor(1.0)}])
def test_no_classifier(content: object, refused_weights: Callable[..., str]) -> None:
    line = refused_weights(content)
    assert "has no classifier" in line
    assert "head.weight" in line
    assert "head.weight" in refused_weights(content, name="efficientformerv2_s0")


def test_weights_that_give_no_numbers(
    refused_weights: Callable[..., str], state: dict[str, torch.Tensor]
) -> None:
    state["head.weight"].fill_(torch.nan)
    assert "not finite" in refused_weights(state)


def test_files_that_are_none(
    refused_weights: Callable[..., str], refused: Callable[..., str], tmp_path: Path
) -> None:
    assert "a list, not a state dict" in refused_weights([1])
    image, text = tmp_path / "a.png", tmp_path / "text.safetensors"
    text.write_text("no weights")
    for path, reason in (
        (tmp_path / "none.pt", "no file"),
        (tmp_path / ("a" * 300), "name too long"),
        (text, "cannot read weights"),
    ):
        line = refused("predict", "hydra_ti16", image, "--weights", path)
        assert str(path) in line
        assert reason in line


def test_long_lists_are_cut_between_parameters() -> None:
    faults = {"of another shape": [f"{i}.weight (1, {i}), want (2, {i})" for i in range(4)]}
    assert shorten(WeightsError("do not fit:\n  all of them", faults)) == (
        "do not fit: of another shape (4): 0.weight (1, 0), want (2, 0), "
        "1.weight (1, 1), want (2, 1), 2.weight (1, 2), want (2, 2), ..."
    )


def test_a_single_line_stays() -> None:
    assert shorten(WeightsError("no file x.pt")) == "no file x.pt"
