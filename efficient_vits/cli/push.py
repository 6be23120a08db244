"""`efficient-vits push`: a model to the Hub, with its card."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import timm
import typer
from torch import nn

from efficient_vits.cli._app import app
from efficient_vits.cli._console import AsJson, print_json, print_text
from efficient_vits.cli._errors import UserError, mistakes, one_line
from efficient_vits.cli._models import check_name, check_size, create
from efficient_vits.cli._values import ImgSize, parse_size
from efficient_vits.cli._weights import count_classes, load, read_weights
from efficient_vits.weights import HubError, Pushed, WeightsError, push
from efficient_vits.weights._hub_config import check_config


@app.command(
    "push",
    epilog="Example: efficient-vits push hydra_s16 user/hydra_s16 --weights best.pt "
    "--licence apache-2.0 --dataset imagenet-1k --measure",
)
def push_command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="NAME|FOLDER",
            help="Name of a model, or a folder with config.json and weights, as 'pull' makes it.",
        ),
    ],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="Repository, such as user/model.")],
    weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Weights of the named model, of any layout; by default its published ones.",
        ),
    ] = None,
    img_size: ImgSize = None,
    licence: Annotated[
        str | None, typer.Option(help="Licence of the weights, as the Hub calls it.")
    ] = None,
    dataset: Annotated[
        list[str] | None, typer.Option(help="What it was trained on; may be repeated.")
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="How it was trained, in words.")] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure it here, for the card's table.")
    ] = False,
    private: Annotated[
        bool, typer.Option("--private", help="Make a new repository private.")
    ] = False,
    revision: Annotated[
        str | None, typer.Option(help="Branch that gets the commit; by default the main one.")
    ] = None,
    message: Annotated[str | None, typer.Option(help="Message of the commit.")] = None,
    save_to: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write the files there, and send nothing."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Send a model to the Hugging Face Hub: weights, configuration and model card.

    The token is that of 'hf auth login', or HF_TOKEN. The files are loaded back and compared with
    the model before they are sent.
    """
    is_folder = Path(source).is_dir()
    arguments: dict[str, Any] | None
    if is_folder and (weights is not None or img_size is not None):
        raise UserError(f"{source} is a folder; --weights and --img-size go with a model's name")
    try:
        with mistakes(ValueError):
            if is_folder:
                model, arguments = _from_folder(Path(source))
            else:
                model, arguments = _from_name(source, weights, img_size)
            pushed = push(
                model,
                repo,
                measurement=_measured(model) if measure else None,
                recipe=recipe,
                licence=licence,
                datasets=dataset or (),
                model_args=arguments,
                private=private,
                revision=revision,
                commit_message=message,
                save_to=save_to,
            )
    except (HubError, WeightsError, OSError) as error:
        raise UserError(str(error)) from error
    if as_json:
        print_json(_to_dict(pushed))
    else:
        print_text(str(pushed.url or pushed.folder), *(f"  {name}" for name in pushed.files))


def _from_folder(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The model in a folder as `pull` makes it, and the arguments that it was created with."""
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} has no config.json; accepted are folders as 'pull' makes them")
    config = check_config(json.loads(path.read_text(encoding="utf-8")), str(folder))
    with mistakes(AssertionError, RuntimeError, TypeError, prefix=f"{folder}: "):
        return timm.create_model(f"local-dir:{folder}", pretrained=True), config.model_args


def _from_name(
    name: str, weights: Path | None, img_size: str | None
) -> tuple[nn.Module, dict[str, Any] | None]:
    """A model by its name, with weights from a file or its published ones.

    Returns:
        The model, and its arguments unless it knows them itself.
    """
    size = None if img_size is None else parse_size(img_size)
    check_name(name)
    check_size(name, size)
    if weights is None:
        with mistakes(RuntimeError):
            model = create(name, size, pretrained=True)
    else:
        state = read_weights(weights)
        model = create(name, size, num_classes=count_classes(name, state, weights))
        load(model, state, name=name, path=weights)
    if hasattr(model, "creation_arguments"):
        return model, None
    fixed = model.pretrained_cfg["fixed_input_size"]  # type: ignore[index]
    return model, {} if size is None or not fixed else {"img_size": size}


def _measured(model: nn.Module) -> Any:
    from efficient_vits.efficiency import measure

    def show(step: str) -> None:
        if sys.stderr.isatty():
            print(one_line(f"measuring {step}"), file=sys.stderr)

    return measure(model, on_step=show)


def _to_dict(pushed: Pushed) -> dict[str, Any]:
    folder = None if pushed.folder is None else str(pushed.folder)
    return {**dataclasses.asdict(pushed), "folder": folder}
