"""`efficient-vits evaluate`: accuracy of a checkpoint, or of published weights."""

from dataclasses import asdict
from typing import Annotated

import typer

from efficient_vits.cli import _training as shared
from efficient_vits.cli._app import app
from efficient_vits.cli._console import ABSENT, AsJson, print_json, print_text
from efficient_vits.cli._errors import UserError
from efficient_vits.cli._values import ImgSize, parse_size


@app.command(epilog="Example: efficient-vits evaluate runs/hydra_ti16-digits-0 --data digits")
def evaluate(
    source: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT|NAME", help="A run's folder, a checkpoint, or a model's name."
        ),
    ],
    data: shared.DataSource,
    img_size: ImgSize = None,
    batch_size: Annotated[int, typer.Option(help="Images at a time.")] = 64,
    workers: shared.Workers = None,
    cpu: shared.Device = False,
    test_split: shared.TestSplit = "validation",
    num_classes: shared.NumClasses = None,
    as_json: AsJson = False,
) -> None:
    """Print the accuracy on a data set. A model by name has its published weights."""
    size = None if img_size is None else parse_square(img_size)
    with shared.training_errors():
        from efficient_vits.training import evaluate_source, load_data

        accuracy = evaluate_source(
            source,
            load_data(data, train_split=test_split, test_split=test_split, num_classes=num_classes),
            img_size=size,
            batch_size=batch_size,
            workers=shared.default_workers() if workers is None else workers,
            cpu=cpu,
        )
    if as_json:
        print_json(asdict(accuracy))
        return
    top5 = ABSENT if accuracy.top5 is None else f"{accuracy.top5:.2f} %"
    print_text(
        f"top-1 {accuracy.top1:.2f} %, top-5 {top5}, loss {accuracy.loss:.4f} on "
        f"{accuracy.images} images"
    )


def parse_square(text: str) -> int:
    """Height and width in pixels, which are the same in a recipe."""
    height, width = parse_size(text)
    if height != width:
        raise UserError(f"--img-size {text!r} is not square; accepted is one number, such as 224")
    return height
