"""`efficient-vits predict`: what a model with your weights sees in your images."""

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from timm.data import ImageNetInfo, create_transform, resolve_model_data_config
from torch import nn

from efficient_vits.cli._app import app
from efficient_vits.cli._console import ABSENT, AsJson, print_json, print_text, table
from efficient_vits.cli._errors import UserError
from efficient_vits.cli._images import check_image, read_image
from efficient_vits.cli._models import check_name, check_size, create
from efficient_vits.cli._values import ImgSize, Size, parse_positive, parse_size
from efficient_vits.cli._weights import count_classes, load, read_weights

_IMAGENET_CLASSES = 1000


@app.command(epilog="Example: efficient-vits predict hydra_s16 --weights hydra.safetensors cat.jpg")
def predict(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Model, one of timm's too.")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="JPEG or PNG files.")],
    weights: Annotated[
        Path, typer.Option(metavar="FILE", help="Its weights, a safetensors or PyTorch file.")
    ],
    top: Annotated[str, typer.Option(metavar="NUMBER", help="How many classes to print.")] = "5",
    labels: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Class names, one a line; ImageNet's for 1000 classes."),
    ] = None,
    as_json: AsJson = False,
    img_size: ImgSize = None,
) -> None:
    """Print the most probable classes of each image."""
    size = None if img_size is None else parse_size(img_size)
    most = parse_positive(top, option="--top")
    check_name(name)
    check_size(name, size)
    for path in images:
        check_image(path)
    state = read_weights(weights)
    num_classes = count_classes(name, state, weights)
    class_names = read_labels(labels, num_classes)

    model = create(name, size, num_classes=num_classes).eval()
    loaded = load(model, state, name=name, path=weights)
    predictions = [_predict(model, path, size, most, class_names) for path in images]
    if as_json:
        print_json(predictions)
        return
    rows = [
        (p["image"], str(c["class"]), c["name"] or ABSENT, f"{c['probability']:.1%}")
        for p in predictions
        for c in p["classes"]
    ]
    headers = ("image", "class", "name", "probability")
    print_text(table(headers, rows, left=("image", "name")))
    resampled = f"; resampled: {', '.join(loaded.resampled)}" if loaded.resampled else ""
    print_text(f"{name} with {weights}, {num_classes} classes, layout {loaded.layout}{resampled}")


def read_labels(path: Path | None, num_classes: int) -> list[str] | None:
    """The classes' names: from a file, ImageNet's for 1000 classes, or none."""
    if path is None:
        if num_classes != _IMAGENET_CLASSES:
            return None
        imagenet = ImageNetInfo()
        return [imagenet.index_to_description(index) for index in range(num_classes)]
    try:
        names = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read --labels {path}: {error}") from error
    if len(names) != num_classes:
        raise UserError(
            f"--labels {path} has {len(names)} lines; accepted is one for each of the "
            f"{num_classes} classes in the weights"
        )
    return names


@torch.inference_mode()
def _predict(
    model: nn.Module, path: Path, size: Size | None, most: int, class_names: list[str] | None
) -> dict[str, Any]:
    config = resolve_model_data_config(model, args={"input_size": size and (3, *size)})
    transform: Any = create_transform(**config, is_training=False)
    logits = model(transform(read_image(path)).unsqueeze(0)).squeeze(0)
    if not logits.isfinite().all():
        raise UserError(f"image {path}: with these weights the model's output is not finite")
    chosen = logits.softmax(dim=0).topk(min(most, len(logits)))
    return {
        "image": str(path),
        "classes": [
            {
                "class": index,
                "name": class_names[index] if class_names else None,
                "probability": probability,
            }
            for probability, index in zip(
                chosen.values.tolist(), chosen.indices.tolist(), strict=True
            )
        ],
    }
