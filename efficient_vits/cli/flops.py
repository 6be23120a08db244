"""`efficient-vits flops`: where the operations of a model are."""

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Any

import torch
import typer
from rich.table import Table

from efficient_vits.cli._app import app
from efficient_vits.cli._console import ABSENT, AsJson, giga, print_json, print_text, table
from efficient_vits.cli._errors import UserError, mistakes
from efficient_vits.cli._models import check_name, check_size, create
from efficient_vits.cli._values import ImgSize, parse_positive, parse_size
from efficient_vits.efficiency import FlopCount, ModuleFlops, count_flops

VIEWS = ("module", "operator", "kind")


@app.command(epilog="Example: efficient-vits flops hydra_s16 --depth 3")
def flops(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Model, timm's too.")],
    img_size: ImgSize = None,
    by: Annotated[
        str, typer.Option(metavar="VIEW", help="module (a tree), operator or kind of work.")
    ] = "module",
    depth: Annotated[
        str, typer.Option(metavar="NUMBER", help="Levels of the tree below the model.")
    ] = "2",
    training: Annotated[
        bool,
        typer.Option("--training", help="Forward and backward pass in train mode, in pairs."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Count the operations of a model by module, operator or kind of work, without running it."""
    size = None if img_size is None else parse_size(img_size)
    levels = parse_positive(depth, option="--depth")
    if by not in VIEWS:
        raise UserError(f"--by {by!r} is no view; accepted are {', '.join(VIEWS)}")
    check_name(name)
    check_size(name, size)
    with torch.device("meta"):
        model = create(name, size)
    config: Any = model.pretrained_cfg
    input_size = config["input_size"] if size is None else (3, *size)
    with mistakes(RuntimeError, prefix=f"{name}: "):
        count = count_flops(
            model, input_size, training=training, backward=training, batch_size=1 + training
        )
    if as_json:
        print_json({"name": name, "input_size": list(input_size), **dataclasses.asdict(count)})
        return
    views = {
        "module": lambda: _tree(count.by_module, levels),
        "operator": lambda: _parts("operator", count.by_operator, count.total),
        "kind": lambda: _parts("kind", count.by_kind, count.total),
    }
    shape = "x".join(map(str, input_size))
    print_text(views[by](), f"{name}: {_summary(count)} per image of {shape}")


def _summary(count: FlopCount) -> str:
    text = f"{giga(count.total)} GFLOPs, {giga(count.macs)} GMACs, rules {count.rules}"
    if count.backward is not None:
        passes = f"{giga(count.forward)} forward and {giga(count.backward)} backward"
        text = f"train mode, {passes}, {text}"
    if count.uncounted:
        text += f", without {', '.join(sorted(count.uncounted))}"
    return text


def _tree(root: ModuleFlops, levels: int) -> Table:
    rows = [
        [label, node.class_name, node.kind, giga(node.total), _share(node.total, root.total)]
        for label, node in _lines(root, levels, lead="", branch="")
    ]
    headers = ["module", "class", "kind", "GFLOPs", "share"]
    return table(headers, rows, left=("module", "class", "kind"))


def _lines(
    node: ModuleFlops, levels: int, *, lead: str, branch: str
) -> Iterator[tuple[str, ModuleFlops]]:
    """Each node that costs something, with its name drawn as a tree."""
    yield f"{lead}{branch}{node.name.rpartition('.')[2] or '(model)'}", node
    children = [child for child in node.children if child.total] if levels else []
    below = lead + {"": "", "├─ ": "│  ", "└─ ": "   "}[branch]
    for child in children:
        last = child is children[-1]
        yield from _lines(child, levels - 1, lead=below, branch="└─ " if last else "├─ ")


def _parts(header: str, parts: dict[str, int], total: int) -> Table:
    ordered = sorted(parts.items(), key=lambda part: -part[1])
    rows = [[name, giga(n), _share(n, total)] for name, n in ordered if n]
    return table([header, "GFLOPs", "share"], rows, left=(header,))


def _share(part: int, total: int) -> str:
    return f"{part / total:.1%}" if total else ABSENT
