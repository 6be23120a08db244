"""What `train`, `finetune` and `evaluate` have in common.

The training code, with pydantic and accelerate, is imported when a command runs.
"""

import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from efficient_vits.cli._console import ABSENT, print_json
from efficient_vits.cli._errors import UserError
from efficient_vits.cli._pairs import parse_pairs

if TYPE_CHECKING:
    from efficient_vits.training import BatchPlan, EpochRow, Recipe, Start, Update

DataSource = Annotated[
    str,
    typer.Option(
        metavar="DATA",
        help="'digits', a folder with a folder per split, or timm's NAME:ROOT such as "
        "torch/cifar10:DIR.",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="A setting of the recipe; again for more."),
]
Preset = Annotated[str | None, typer.Option(help="Recipe of the benchmark.")]
RecipeFile = Annotated[Path | None, typer.Option("--recipe", metavar="FILE", help="Recipe, YAML.")]
Seed = Annotated[int, typer.Option(help="Of everything random.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")]
MicroBatch = Annotated[
    int | None,
    typer.Option(metavar="NUMBER", help="Most images at a time; the batch stays the recipe's."),
]
Workers = Annotated[
    int | None,
    typer.Option(metavar="NUMBER", help="Processes that load images; by default one per core."),
]
KeepEvery = Annotated[
    int | None, typer.Option(metavar="EPOCHS", help="Keep the checkpoint of every n-th epoch.")
]
SaveEvery = Annotated[
    int | None, typer.Option(metavar="UPDATES", help="Checkpoints within an epoch.")
]
TensorBoard = Annotated[
    bool, typer.Option("--tensorboard", help="Write TensorBoard's files to the folder too.")
]
Fsdp = Annotated[
    bool,
    typer.Option(
        "--fsdp", help="Spread parameters and optimizer state over the processes (FSDP2)."
    ),
]
Device = Annotated[bool, typer.Option("--cpu", help="Leave accelerators alone.")]
TrainSplit = Annotated[str, typer.Option(help="Part that is trained on.")]
TestSplit = Annotated[str, typer.Option(help="Part that accuracies are of.")]
NumClasses = Annotated[
    int | None, typer.Option(help="For data that doesn't say how many classes it has.")
]


@contextmanager
def training_errors() -> Iterator[None]:
    """A mistake of the user's, or an extra that is not installed, becomes one line."""
    try:
        from efficient_vits.training import (
            BatchError,
            CheckpointError,
            DataError,
            NotFiniteError,
            RecipeError,
            StartError,
        )
    except ModuleNotFoundError as error:
        raise UserError(
            f"training needs {error.name}: pip install 'efficient-vits[train]'"
        ) from error
    try:
        yield
    except (
        BatchError,
        CheckpointError,
        DataError,
        FileExistsError,
        NotFiniteError,
        RecipeError,
        StartError,
    ) as error:
        # An error of a loading process has its traceback before it.
        last = str(error).strip().splitlines()[-1]
        raise UserError(re.sub(r"^efficient_vits[.\w]+: ", "", last)) from error


def choose_recipe(
    preset_name: str | None,
    file: Path | None,
    settings: Sequence[str] | None,
    *,
    default: str,
    model: str,
) -> "Recipe":
    """The recipe of a file or a preset, with the settings of the command line."""
    from efficient_vits.training import Recipe, preset

    if preset_name is not None and file is not None:
        raise UserError("--preset and --recipe exclude each other")
    if file is None:
        recipe = preset(preset_name or default, model=model)
    else:
        try:
            recipe = Recipe.from_yaml(file)
        except OSError as error:
            raise UserError(f"--recipe {file}: {error.strerror}") from error
    return recipe.with_changes(**parse_pairs(settings or (), option="--set"))


def run_training(
    start: "Start",
    recipe: "Recipe",
    output: Path,
    *,
    data: str,
    splits: tuple[str, str],
    num_classes: int | None,
    seed: int,
    resume: bool,
    cpu: bool,
    quiet: bool,
    **options: Any,
) -> dict[str, Any]:
    """Trains, and shows how it goes on stderr, unless `quiet`.

    `options` are those of `efficient_vits.training.Options`; `workers` None is one per core.
    """
    from efficient_vits.training import Options, load_data, train

    if options["workers"] is None:
        options["workers"] = default_workers()
    loaded = load_data(data, train_split=splits[0], test_split=splits[1], num_classes=num_classes)
    with Display(recipe, quiet=quiet) as display:
        return train(
            start,
            loaded,
            recipe,
            output,
            options=Options(**options),
            seed=seed,
            resume=resume,
            cpu=cpu,
            on_begin=display.begin,
            on_update=display.update,
            on_epoch=display.epoch,
        )


def default_workers() -> int:
    """Loading processes for one training process: its share of the cores, one left for itself."""
    # A task of Slurm's that was given cores sees no others; elsewhere all see all of the machine's.
    alone = os.environ.get("SUBMITIT_EXECUTOR") == "slurm" and "SLURM_CPUS_PER_TASK" in os.environ
    processes = 1 if alone else int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    # Of all the cores, those that this process may use; macOS and Windows don't say.
    own = getattr(os, "sched_getaffinity", None)
    cores = (os.cpu_count() or 1) if own is None else len(own(0))
    return max(cores // processes - 1, 1)


class Display:
    """A line that moves while an epoch runs, and a line for every epoch that has ended.

    Args:
        recipe: What is carried out.
        quiet: Show nothing, as processes other than the first do anyway.
    """

    def __init__(self, recipe: "Recipe", *, quiet: bool = False) -> None:
        self.recipe = recipe
        self.shown = is_first() and not quiet
        console = Console(stderr=True, highlight=False, quiet=not self.shown)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=12),  # so that all fits into 80 columns
            TextColumn("{task.fields[figures]}"),
            console=console,
            auto_refresh=False,
            transient=True,
            disable=not (self.shown and sys.stderr.isatty()),
        )
        self.task = self.progress.add_task("", total=None, figures="")
        self.done, self.seconds, self.drawn = 0, 0.0, 0.0

    def __enter__(self) -> "Display":
        self.progress.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.progress.__exit__(*error)

    def begin(self, plan: "BatchPlan", updates_per_epoch: int) -> None:
        """Says how a batch is spread."""
        self.plan, self.updates_per_epoch = plan, updates_per_epoch
        self.progress.console.print(
            f"{self.recipe.name}: {self.recipe.epochs} epochs of {updates_per_epoch} updates; "
            f"{plan}",
            soft_wrap=True,  # a log has whole lines
        )

    def update(self, update: "Update") -> None:
        """Moves the line, at most ten times a second."""
        self.done += 1
        self.seconds += update.seconds
        if self.progress.disable or time.monotonic() - self.drawn < 0.1:
            return
        self.drawn = time.monotonic()
        whole = self.recipe.epochs * self.updates_per_epoch
        number = update.epoch * self.updates_per_epoch + update.index + 1
        left = (whole - number) * self.seconds / self.done
        loss = sum(float(value) for value in update.losses.values())
        self.progress.update(
            self.task,
            description=f"epoch {update.epoch + 1}/{self.recipe.epochs}",
            completed=update.index + 1,
            total=self.updates_per_epoch,
            figures=f"loss {loss:.3f}  lr {update.lr:.2e}  "
            f"{self.done * self.plan.total / self.seconds:.0f} images/s  {duration(left)} left",
            refresh=True,
        )

    def epoch(self, row: "EpochRow") -> None:
        """A line for an epoch."""
        losses = "  ".join(f"{name} {value:.4f}" for name, value in row.losses.items() if value)
        averaged = "" if row.ema_top1 is None else f"  averaged {row.ema_top1:.2f} %"
        left = (self.recipe.epochs - row.epoch) * row.seconds
        memory = "" if row.peak_memory is None else f"  {row.peak_memory / 2**30:.2f} GiB"
        self.progress.console.print(
            f"epoch {row.epoch}/{self.recipe.epochs}  {losses}  top-1 {row.top1:.2f} %{averaged}  "
            f"lr {row.lr:.2e}  {row.images_per_second:.0f} images/s{memory}  {duration(left)} left",
            soft_wrap=True,
        )


def duration(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def is_first() -> bool:
    """Whether this is the process that prints."""
    return int(os.environ.get("RANK", 0)) == 0


def print_result(result: dict[str, Any], output: Path, *, as_json: bool) -> None:
    """The run on stdout, in three lines or as JSON; nothing in processes that don't print."""
    if not is_first():
        return
    if as_json:
        print_json(result)
        return
    training = result["training"]
    top5 = ABSENT if result["top5"] is None else f"{result['top5']:.2f} %"
    print(
        f"{result['name']}: top-1 {result['top1']:.2f} %, top-5 {top5} after epoch "
        f"{result['best_epoch']} of {training['epochs']}\n"
        f"{training['gpu_hours']:.3f} device hours, {training['images_per_second']:.0f} images/s\n"
        f"weights: {output / 'best' / 'model.safetensors'}"
    )
