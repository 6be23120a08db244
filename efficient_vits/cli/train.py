"""`efficient-vits train`: a new model by the benchmark's recipe."""

import functools
from pathlib import Path
from typing import Annotated

import typer

from efficient_vits.cli import _cluster
from efficient_vits.cli import _training as shared
from efficient_vits.cli._app import app
from efficient_vits.cli._console import AsJson
from efficient_vits.cli._models import check_name
from efficient_vits.cli._pairs import parse_pairs


@app.command(epilog="Example: efficient-vits train hydra_ti16 --data digits")
def train(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Model, one of timm's too.")],
    data: shared.DataSource,
    preset: shared.Preset = None,
    recipe: shared.RecipeFile = None,
    settings: shared.Settings = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="DIR", help="By default runs/NAME-RECIPE-SEED."),
    ] = None,
    arguments: Annotated[
        list[str] | None,
        typer.Option("--arg", metavar="NAME=VALUE", help="An argument of the model."),
    ] = None,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="Begin with the published weights.")
    ] = False,
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
    """Train a new model. Under torchrun or accelerate launch, on all processes of it."""
    check_name(name)
    job = _cluster.Job(launcher, nodes, gpus_per_node, partition, time, slurm, cpu)
    with shared.training_errors():
        from efficient_vits.training import Start

        default = "digits" if data == "digits" else "pretrain"
        chosen = shared.choose_recipe(preset, recipe, settings, default=default, model=name)
        folder = output or Path("runs") / f"{name}-{chosen.name}-{seed}"
        carry_out = functools.partial(
            shared.run_training,
            Start(name, parse_pairs(arguments or (), option="--arg"), pretrained),
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
