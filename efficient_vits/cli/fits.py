"""`efficient-vits fits`: whether a model fits into a memory, and at which batch."""

import dataclasses
import re
from typing import Annotated, Any

import typer

from efficient_vits.cli._app import app
from efficient_vits.cli._console import AsJson, print_json, print_text, table
from efficient_vits.cli._errors import UserError, mistakes
from efficient_vits.cli._models import check_name, check_size
from efficient_vits.cli._values import ImgSize, parse_positive, parse_size
from efficient_vits.efficiency import MemoryUse, estimate_memory, largest_batch

_UNITS = {"": 1, "B": 1, **{f"{p}B": 1000**i for i, p in enumerate("KMGT", 1)}}
_UNITS |= {f"{p}iB": 1024**i for i, p in enumerate("KMGT", 1)}
_AMP: dict[str, bool | str] = {
    "float16": "float16",
    "bfloat16": "bfloat16",
    "on": True,
    "off": False,
}


@app.command("fits", epilog="Example: efficient-vits fits vit_l16 --memory 24GB --batch-size 256")
def fits_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A model, timm's too.")],
    memory: Annotated[
        str,
        typer.Option(metavar="BYTES", help="What there is, such as 24GB (10^9) or 24GiB (2^30)."),
    ],
    batch_size: Annotated[
        str | None,
        typer.Option(metavar="NUMBER", help="Images in a batch; by default one has to fit."),
    ] = None,
    img_size: ImgSize = None,
    training: Annotated[
        bool,
        typer.Option("--training/--inference", help="A training step, or a forward pass."),
    ] = True,
    optimizer: Annotated[
        str | None, typer.Option(help="timm's name of it, lamb by default; for training only.")
    ] = None,
    amp: Annotated[
        str, typer.Option(metavar="DTYPE", help="Autocast: on, off, float16 or bfloat16.")
    ] = "on",
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Blocks keep their input only in training.")
    ] = False,
    unfused: Annotated[
        bool, typer.Option("--unfused", help="Attention keeps its matrix of weights.")
    ] = False,
    device: Annotated[str, typer.Option(help="Whose rules hold: cuda or cpu.")] = "cuda",
    as_json: AsJson = False,
) -> int:
    """Estimate whether a model fits into a memory; needs no such device.

    The exit status is 0 if it does, 1 if it does not, 2 after a mistake in the arguments.
    """
    available = parse_bytes(memory)
    images = None if batch_size is None else parse_positive(batch_size, option="--batch-size")
    if amp not in _AMP:
        raise UserError(f"--amp {amp!r} is no dtype; accepted are {', '.join(_AMP)}")
    size = None if img_size is None else parse_size(img_size)
    check_name(name)
    check_size(name, size)
    options: dict[str, Any] = {
        "input_size": None if size is None else (3, *size),
        "training": training,
        "optimizer": optimizer,
        "amp": _AMP[amp],
        "grad_checkpointing": checkpointing,
        "fused_attention": False if unfused else None,
        "device": device,
    }
    with mistakes(ValueError, prefix=f"{name}: "):
        asked = estimate_memory(name, 1 if images is None else images, **options)
        largest = largest_batch(name, available, **options)
    fits = asked.peak_bytes <= available
    if as_json:
        print_json(
            {
                "name": name,
                "memory": available,
                "fits": fits,
                "estimate": dataclasses.asdict(asked),
                "largest_batch": largest.batch_size if largest else 0,
            }
        )
    else:
        shown = asked if images is not None or largest is None else largest
        print_text(*_answer(name, memory, shown, fits, largest))
    return 0 if fits else 1


def parse_bytes(text: str) -> int:
    """Bytes from a number with a unit."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)", text)
    unit = _UNITS.get(match[2]) if match else None
    number = int(float(match[1]) * unit) if match and unit else 0
    if not number:
        raise UserError(
            f"--memory {text!r} is no size; accepted are positive numbers with a unit: "
            f"{', '.join(filter(None, _UNITS))}"
        )
    return number


def _answer(
    name: str, memory: str, use: MemoryUse, fits: bool, largest: MemoryUse | None
) -> list[object]:
    what = f"training with {use.optimizer}" if use.training else "inference"
    precision = f"autocast to {use.amp}" if use.amp else "no autocast"
    checkpointed = ", gradient checkpointing" if use.grad_checkpointing else ""
    parts = [
        ("weights", use.weights_bytes),
        ("images and labels" if use.training else "images", use.input_bytes),
        ("activations", use.activation_bytes),
        ("gradients", use.gradient_bytes),
        ("optimizer", use.optimizer_bytes),
        ("workspace", use.workspace_bytes),
        ("peak", use.peak_bytes),
    ]
    rows = [(label, f"{size / 2**30:.3f} GiB") for label, size in parts if size]
    lines: list[object] = [
        f"{'yes' if fits else 'no'}: {name}, {what} at batch {use.batch_size}, {precision}"
        f"{checkpointed}, takes {use.peak_bytes / 1e9:.2f} GB ({use.peak_bytes / 2**30:.2f} GiB) "
        f"of {memory}",
        table(("at the peak", "estimate"), rows, left=("at the peak",)),
        f"largest batch: {largest.batch_size if largest else 'none, not even one image fits'}",
    ]
    if use.device == "cuda":
        lines.append("not in it: CUDA's context, workspaces of its libraries, lost space")
    return lines
