"""`efficient-vits sweep`: many models, one process for each, into a file that can be resumed."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

import efficient_vits
from efficient_vits.cli._app import PROGRAM, app
from efficient_vits.cli._console import AsJson, print_json, print_text
from efficient_vits.cli._errors import UserError, mistakes, one_line
from efficient_vits.cli._pairs import parse_pairs
from efficient_vits.cli._values import parse_positive, parse_size
from efficient_vits.efficiency import Local, Submitit, SweepProgress, sweep

_LAUNCHERS = ("local", "slurm", "local-submitit")


@app.command(
    "sweep", epilog="Example: efficient-vits sweep 'hydra_*' vit_s16 -o results.jsonl --device cpu"
)
def sweep_command(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME", help="Models, timm's too, or patterns of 'list', else of timm's names."
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File of the rows; a sweep goes on in it.")
    ],
    img_size: Annotated[
        list[str] | None,
        typer.Option(metavar="SIZE", help="Pixels, 224 or 224x320; again for more sizes."),
    ] = None,
    batch_size: Annotated[
        list[str] | None,
        typer.Option(metavar="NUMBER", help="Images in a batch; again for more of them."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda; by default cuda where there is one.")
    ] = None,
    no_throughput: Annotated[
        bool, typer.Option("--no-throughput", help="Leave out images per second.")
    ] = False,
    no_memory: Annotated[bool, typer.Option("--no-memory", help="Leave out peak memory.")] = False,
    fused: Annotated[
        bool, typer.Option("--fuse", help="Fold norms and branches first, as for inference.")
    ] = False,
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="A further argument of measure(), again for more."),
    ] = None,
    model_arg: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="An argument for all models, again for more."),
    ] = None,
    imports: Annotated[
        list[str] | None,
        typer.Option("--import", metavar="MODULE", help="A module that registers own models."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the random weights.")] = 0,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="For each model.")] = 3600.0,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Run again what has failed before.")
    ] = False,
    workers: Annotated[
        str, typer.Option(metavar="NUMBER", help="Models at a time; they disturb each other.")
    ] = "1",
    gpus: Annotated[
        str | None, typer.Option(metavar="LIST", help="A model at a time on each: 0,1 or all.")
    ] = None,
    launcher: Annotated[str, typer.Option(help=f"One of {', '.join(_LAUNCHERS)}.")] = "local",
    slurm: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE", help="What Slurm is asked for: partition=gpu, gpus_per_node=1, ..."
        ),
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Measure many models, each in a process of its own; killed, it goes on where it was."""
    options = parse_pairs(option or [], option="--option")
    switches = {"throughput": not no_throughput, "memory": not no_memory, "device": device}
    for name, value in switches.items():
        options.setdefault(name, value)
    sizes = [parse_size(text) for text in img_size or []]
    batches = [parse_positive(text, option="--batch-size") for text in batch_size or []]
    if imports:
        # As `python -m` would: a module beside the user is found.
        sys.path.insert(0, "")
    with (
        mistakes(ValueError, TypeError, OSError, ImportError),
        _progress(quiet=as_json) as on_progress,
    ):
        rows = sweep(
            _expand(names),
            output=output,
            img_sizes=sizes,
            batch_sizes=batches,
            model_arguments=parse_pairs(model_arg or [], option="--model-arg"),
            transform="efficient_vits:fuse" if fused else None,
            imports=imports or [],
            seed=seed,
            timeout=timeout,
            retry_failed=retry_failed,
            launcher=_launcher(launcher, workers, gpus, slurm or []),
            on_progress=on_progress,
            **options,
        )
    failed = [row for row in rows if "error" in row]
    if as_json:
        print_json(rows)
    else:
        print_text(
            f"{output}: {len(rows) - len(failed)} measured, {len(failed)} failed",
            *(f"{row['name']} ({row['reason']}): {one_line(row['error'])}" for row in failed),
        )
    return int(bool(failed))


def _expand(names: list[str]) -> list[str]:
    """Patterns as the catalog's models; those that it doesn't know are left for timm's."""
    expanded = []
    for name in names:
        is_pattern = any(sign in name for sign in "*?[")
        expanded += (is_pattern and efficient_vits.list_models(name)) or [name]
    return expanded


def _launcher(name: str, workers: str, gpus: str | None, slurm: list[str]) -> Local | Submitit:
    if name not in _LAUNCHERS:
        raise UserError(f"--launcher {name!r} is none; accepted are {', '.join(_LAUNCHERS)}")
    count = parse_positive(workers, option="--workers")
    if name == "local":
        if slurm:
            raise UserError(f"--slurm {slurm[0]!r} needs --launcher slurm")
        return Local(workers=count, gpus=None if gpus is None else _parse_gpus(gpus))
    if gpus is not None or count != 1:
        raise UserError(f"--workers and --gpus are for --launcher local, not {name}")
    cluster = "slurm" if name == "slurm" else "local"
    return Submitit(cluster, parse_pairs(slurm, option="--slurm"))


def _parse_gpus(text: str) -> list[int] | Literal["all"]:
    if text == "all":
        return cast(Literal["all"], text)
    numbers = text.split(",")
    if not all(number.isdecimal() for number in numbers):
        raise UserError(f"--gpus {text!r} are no GPUs; accepted are numbers such as 0,1 and all")
    return [int(number) for number in numbers]


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Callable[[SweepProgress], Any]]:
    """A bar on a terminal, a line for each finished model in a log."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        console=Console(stderr=True),
        # Drawn only when something happens: a thread would share the processor with the models.
        auto_refresh=False,
        transient=True,
        disable=quiet or not sys.stderr.isatty(),
    ) as progress:
        task = progress.add_task("", total=None)

        def show(state: SweepProgress) -> None:
            left = "" if state.seconds_left is None else f", {_duration(state.seconds_left)} left"
            text = f"{state.name}: {state.step}{left}"
            progress.update(
                task, description=text, completed=state.done, total=state.total, refresh=True
            )
            if progress.disable and not quiet and state.step in ("measured", "failed"):
                print(f"{PROGRAM}: {state.done}/{state.total} {text}", file=sys.stderr)

        yield show


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
