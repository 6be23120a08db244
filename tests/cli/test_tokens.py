from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

SIZE = ("--img-size", "64")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "noise.png"
    values = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


def test_writes_a_picture_and_says_with_which_weights(
    run: Callable[..., tuple[int, str, str]], image: Path, tmp_path: Path
) -> None:
    out = tmp_path / "tokens.png"
    status, text, err = run("tokens", "tome_ti16_r8", image, "-o", out, *SIZE)
    assert (status, err) == (0, "")
    assert "random weights" in text
    with Image.open(out) as picture:
        assert picture.width > picture.height > 100


def test_takes_weights(
    run: Callable[..., tuple[int, str, str]], image: Path, tmp_path: Path
) -> None:
    path, out = tmp_path / "tome.pt", tmp_path / "tokens.svg"
    torch.save(timm.create_model("tome_ti16_r8", img_size=64, num_classes=3).state_dict(), path)
    status, text, _ = run("tokens", "tome_ti16_r8", image, "-o", out, "--weights", path, *SIZE)
    assert status == 0
    assert f"weights {path}" in text
    assert "<svg" in out.read_text()


@pytest.mark.parametrize(
    ("name", "output", "complaint"),
    [
        ("vit_ti16", "x.png", "vit_ti16: ComposableViT has no token_maps"),
        ("tome_ti16_r8", "x.txt", "none of .png, .svg, .pdf"),
        ("tome_ti16_r8", "nowhere/x.png", "there is no folder"),
        ("tomeh_ti16_r8", "x.png", "tome_ti16_r8"),
    ],
)
def test_refuses(
    refused: Callable[..., str],
    image: Path,
    tmp_path: Path,
    name: str,
    output: str,
    complaint: str,
) -> None:
    assert complaint in refused("tokens", name, image, "-o", tmp_path / output, *SIZE)
    assert not (tmp_path / output).exists()
