from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import ImageNetInfo, create_transform, resolve_model_data_config

from efficient_vits import load_weights
from efficient_vits.cli.predict import read_labels

SIZE = ("--img-size", "64")
NAMES = list("abcdefghij")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "noise.png"
    values = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


def by_hand(weights: Path, image: Image.Image, size: int = 64) -> torch.Tensor:
    """Probabilities by timm's own preprocessing."""
    model = timm.create_model("hydra_ti16", num_classes=10, img_size=size).eval()
    load_weights(model, weights)
    config = {**resolve_model_data_config(model), "input_size": (3, size, size)}
    pixels = create_transform(**config, is_training=False)(image.convert("RGB"))
    with torch.no_grad():
        return model(pixels[None])[0].softmax(0)


def check(prediction: dict[str, Any], expected: torch.Tensor, names: list[str] | None) -> None:
    probabilities, indices = expected.topk(len(prediction["classes"]))
    assert [c["class"] for c in prediction["classes"]] == indices.tolist()
    assert [c["name"] for c in prediction["classes"]] == [
        names[i] if names else None for i in indices.tolist()
    ]
    # Batched and unbatched kernels may differ in the last digits of float32.
    assert [c["probability"] for c in prediction["classes"]] == pytest.approx(
        probabilities.tolist(), rel=1e-4
    )


def test_png_and_jpeg(
    run_json: Callable[..., Any], weights: Path, image: Path, tmp_path: Path
) -> None:
    jpeg = tmp_path / "noise.jpg"
    Image.open(image).rotate(90).save(jpeg)
    predictions = run_json("predict", "hydra_ti16", image, jpeg, "--weights", weights, *SIZE)
    for path, prediction in zip((image, jpeg), predictions, strict=True):
        assert prediction["image"] == str(path)
        assert len(prediction["classes"]) == 5
        check(prediction, by_hand(weights, Image.open(path)), None)


def test_orientation_palette_and_transparency(
    run_json: Callable[..., Any], weights: Path, image: Path, tmp_path: Path
) -> None:
    upright = Image.open(image)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    turned, palette = tmp_path / "turned.png", tmp_path / "palette.png"
    upright.transpose(Image.Transpose.ROTATE_90).save(turned, exif=exif)
    upright.quantize(16).save(palette)
    rgba = tmp_path / "rgba.png"
    upright.convert("RGBA").save(rgba)
    argv = ("predict", "hydra_ti16", turned, palette, rgba, "--weights", weights, *SIZE)
    first, second, third = run_json(*argv)
    check(first, by_hand(weights, upright), None)
    check(second, by_hand(weights, Image.open(palette)), None)
    check(third, by_hand(weights, upright), None)


def test_normalisation_is_in_eval_mode(
    run_json: Callable[..., Any], image: Path, tmp_path: Path
) -> None:
    path = tmp_path / "resnet.pt"
    model = timm.create_model("test_resnet", num_classes=3)
    torch.save(model.state_dict(), path)
    (prediction,) = run_json("predict", "test_resnet", image, "--weights", path)
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    with torch.no_grad():
        expected = model.eval()(transform(Image.open(image))[None])[0].softmax(0)
    check(prediction, expected, None)


def test_labels_and_top_and_the_models_own_size(
    run_json: Callable[..., Any], weights: Path, image: Path, tmp_path: Path
) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(NAMES) + "\n")
    argv = ("predict", "hydra_ti16", image, "--weights", weights, "--labels", labels)
    (prediction,) = run_json(*argv, "--top", "20")
    assert len(prediction["classes"]) == 10
    check(prediction, by_hand(weights, Image.open(image), size=224), NAMES)


def test_the_table(run: Callable[..., tuple[int, str, str]], weights: Path, image: Path) -> None:
    argv = ("predict", "hydra_ti16", image, "--weights", weights, "--top", "2", *SIZE)
    status, out, err = run(*argv)
    header, _, first, second, source = out.splitlines()
    assert (status, err) == (0, "")
    assert header.split() == ["image", "class", "name", "probability"]
    probabilities, indices = by_hand(weights, Image.open(image)).topk(2)
    for row, p, index in zip((first, second), probabilities, indices, strict=True):
        assert row.split() == [str(image), str(int(index)), "-", f"{p:.1%}"]
    assert "10 classes, layout efficient_vits" in source


def test_a_thousand_classes_are_imagenets() -> None:
    names = read_labels(None, 1000)
    assert names is not None
    assert len(names) == 1000
    assert names[1] == ImageNetInfo().index_to_description(1)
    assert "goldfish" in names[1]
    assert read_labels(None, 999) is None


def test_mistakes_in_images(
    refused: Callable[..., str], weights: Path, image: Path, tmp_path: Path
) -> None:
    text, cut, deep = tmp_path / "text.jpg", tmp_path / "cut.png", tmp_path / "deep.png"
    text.write_text("no picture")
    cut.write_bytes(image.read_bytes()[:2000])
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000).save(deep)
    for path, reason in (
        (tmp_path / "none.png", "no image file"),
        (tmp_path, "no image file"),
        (tmp_path / ("a" * 300), "name too long"),
        (text, "is not an image; accepted are"),
        (cut, "cannot read image"),
        (deep, "more than 8 bits"),
    ):
        line = refused("predict", "hydra_ti16", image, path, "--weights", weights, *SIZE)
        assert str(path) in line
        assert reason in line


def test_an_image_that_would_fill_the_memory(
    refused: Callable[..., str], weights: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 90 * 120 - 1)
    line = refused("predict", "hydra_ti16", image, "--weights", weights, *SIZE)
    assert "10800 pixels" in line


def test_mistakes_in_options(
    refused: Callable[..., str], weights: Path, image: Path, tmp_path: Path
) -> None:
    good = ("predict", "hydra_ti16", image, "--weights", weights)
    few = tmp_path / "few.txt"
    few.write_text("a\nb")
    line = refused(*good, "--labels", few)
    assert "has 2 lines" in line
    assert "10 classes" in line
    assert "none.txt" in refused(*good, "--labels", tmp_path / "none.txt")
    assert "cannot read --labels" in refused(*good, "--labels", image)
    assert "'0'" in refused(*good, "--top", "0")
    assert "16x16" in refused(*good, "--img-size", "70")
    assert "hydra_ti16" in refused("predict", "hydra_ti61", image, "--weights", weights)
