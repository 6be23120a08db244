"""`efficient-vits tokens`: a picture of the patches that a model drops and merges."""

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from timm.data import create_transform, resolve_model_data_config

from efficient_vits.cli._app import app
from efficient_vits.cli._console import print_text
from efficient_vits.cli._errors import UserError, mistakes
from efficient_vits.cli._images import check_image, read_image
from efficient_vits.cli._models import check_name, check_size, create
from efficient_vits.cli._values import ImgSize, parse_size
from efficient_vits.cli._weights import count_classes, load, read_weights

FORMATS = (".png", ".svg", ".pdf")


@app.command(epilog="Example: efficient-vits tokens tome_s16_r8 cat.jpg -o tokens.png")
def tokens(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Model with a token reduction.")],
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="JPEG or PNG file.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="PNG, SVG or PDF to write.")
    ],
    weights: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Its weights; random ones by default, which is said."),
    ] = None,
    img_size: ImgSize = None,
) -> None:
    """Draw an image with its dropped and merged patches, block by block."""
    size = None if img_size is None else parse_size(img_size)
    check_name(name)
    check_size(name, size)
    check_image(image)
    if output.suffix.lower() not in FORMATS:
        raise UserError(f"--output {output} is none of {', '.join(FORMATS)}")
    if not output.parent.is_dir():
        raise UserError(f"--output {output}: there is no folder {output.parent}")
    torch.manual_seed(0)
    if weights is None:
        model = create(name, size)
        origin = "random weights, which show the mechanism and nothing that was learned"
    else:
        state = read_weights(weights)
        model = create(name, size, num_classes=count_classes(name, state, weights))
        load(model, state, name=name, path=weights)
        origin = f"weights {weights}"
    config = resolve_model_data_config(model, args={"input_size": size and (3, *size)})
    transform: Any = create_transform(**config, is_training=False)

    from efficient_vits.plots import draw_tokens

    with mistakes(TypeError, ImportError, ValueError, prefix=f"{name}: "):
        figure = draw_tokens(model, transform(read_image(image)))
    figure.savefig(output, dpi=150)
    print_text(f"{output}: {name}, {origin}")
