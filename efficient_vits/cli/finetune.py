"""`efficient-vits finetune`: goes on from a checkpoint with another recipe or other data."""

import functools
from pathlib import Path
from typing import Annotated

import typer

from efficient_vits.cli import _cluster
from efficient_vits.cli import _training as shared
from efficient_vits.cli._app import app
from efficient_vits.cli._console import AsJson


@app.command(
    epilog="Example: efficient-vits finetune runs/hydra_s16-pretrain-192-0 --data imagenet "
    "--preset finetune"
)
def finetune(
    source: Annotated[
        Path,
        typer.Argument(metavar="CHECKPOINT", help="A run's folder, or a checkpoint in it."),
    ],
    data: shared.DataSource,
    preset: shared.Preset = None,
    recipe: shared.RecipeFile = None,
    settings: shared.Settings = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="DIR", help="By default runs/NAME-RECIPE-SEED."),
    ] = None,
    seed: shared.Seed = 0,
    resume: shared.Resume = False,
    micro_batch: shared.MicroBatch = None,
    workers: shared.Workers = None,
    keep_every: shared.KeepEvery = None,
    save_every: shared.SaveEvery = None,
    tensorboard: shared.TensorBoard = False,
    fsdp: shared.Fsdp = False,
    cpu: shared.Device = False,
    train_split: shared.TrainSplit = "train",
    test_split: shared.TestSplit = "validation",
    num_classes: shared.NumClasses = None,
    launcher: _cluster.Launcher = "here",
    nodes: _cluster.Nodes = None,
    gpus_per_node: _cluster.GpusPerNode = None,
    partition: _cluster.Partition = None,
    time: _cluster.Time = None,
    slurm: _cluster.Slurm = None,
    as_json: AsJson = False,
) -> None:
    """Fine-tune a checkpoint at the recipe's image size, with a classifier for the data."""
    job = _cluster.Job(launcher, nodes, gpus_per_node, partition, time, slurm, cpu)
    with shared.training_errors():
        from efficient_vits.training import from_checkpoint

        start = from_checkpoint(source)
        chosen = shared.choose_recipe(
            preset, recipe, settings, default="finetune", model=start.model
        )
        folder = output or Path("runs") / f"{start.model}-{chosen.name}-{seed}"
        carry_out = functools.partial(
            shared.run_training,
            start,
            chosen,
            folder,
            data=data,
            splits=(train_split, test_split),
            num_classes=num_classes,
            seed=seed,
            cpu=cpu,
            micro_batch=micro_batch,
            workers=workers,
            keep_every=keep_every,
            save_every=save_every,
            tensorboard=tensorboard,
            fsdp=fsdp,
            quiet=as_json and launcher == "here",
        )
        result = job.run(carry_out, folder, resume=resume, as_json=as_json)
    if result is not None:
        shared.print_result(result, folder, as_json=as_json)
