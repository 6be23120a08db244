"""A training run from the first update to the last, interruptions included."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import IterableDataset

from efficient_vits.efficiency import environment
from efficient_vits.training import checkpoint
from efficient_vits.training.batches import BatchPlan, plan_batches
from efficient_vits.training.checkpoint import CheckpointError
from efficient_vits.training.data import Data, DataError
from efficient_vits.training.devices import meet
from efficient_vits.training.evaluation import Accuracy, evaluate_model
from efficient_vits.training.loaders import Ordered, evaluation_loader, seed_all, training_loader
from efficient_vits.training.recipe import Recipe
from efficient_vits.training.rows import (
    EpochRow,
    best_epoch,
    result_row,
    tensorboard_writer,
    write_scalars,
    write_whole,
)
from efficient_vits.training.start import Start, build_model, build_teacher
from efficient_vits.training.streams import stream_size
from efficient_vits.training.sync_norm import synchronise_batch_norms
from efficient_vits.training.totals import Totals
from efficient_vits.training.trainer import Trainer, Update


@dataclass(frozen=True)
class Options:
    """How a run is carried out; unlike the recipe, none of it changes what is learnt.

    Attributes:
        micro_batch: The most images that a process takes at a time; None for no limit.
        workers: Processes that load images, per training process.
        keep_every: Checkpoints of every so many epochs are kept; None for the last and the best.
        save_every: Updates between checkpoints within an epoch; None for one per epoch.
        tensorboard: Write TensorBoard's files too.
        fsdp: Spread parameters, gradients and optimizer state over the processes (FSDP2), where
            else each has all of them.
    """

    micro_batch: int | None = None
    workers: int = 0
    keep_every: int | None = None
    save_every: int | None = None
    tensorboard: bool = False
    fsdp: bool = False


class _Run:
    """The parts of a run, and how far it is."""

    def __init__(
        self,
        start: Start,
        data: Data,
        recipe: Recipe,
        output: Path,
        options: Options,
        seed: int,
        cpu: bool,
    ) -> None:
        self.start, self.data, self.recipe, self.options = start, data, recipe, options
        self.output, self.seed = output, seed
        self.accelerator = meet(cpu=cpu)
        self.plan = plan_batches(
            recipe.batch_size,
            self.accelerator.num_processes,
            options.micro_batch,
            pairs=recipe.cutmix > 0,
        )
        self.epoch = self.batch = 0
        self.history: list[EpochRow] = []
        self.totals = Totals(self.accelerator)
        self.facts = environment()
        self.board: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes."""
        return bool(self.accelerator.is_main_process)

    def identity(self) -> dict[str, Any]:
        """What must be the same when a run is taken up again."""
        return {
            "model": self.start.model,
            "pretrained": self.start.pretrained,
            "arguments": dict(self.start.arguments),
            "recipe": self.recipe.model_dump(mode="json"),
            "data": self.data.name,
            "num_classes": self.data.num_classes,
            "seed": self.seed,
            "lineage": [dict(step) for step in self.start.lineage],
        }

    def prepare(self, *, resume: bool) -> None:
        """Builds everything, and takes up the last checkpoint if asked to and there is one."""
        found = checkpoint.refuse_other_run(self.output, resume=resume)
        state = checkpoint.load_state(self.output / "last") if found else None
        if state is not None:
            self._check_same(state)
        seed_all(self.seed)
        model = build_model(self.start, self.recipe, self.data.num_classes)
        if self.accelerator.num_processes > 1:
            model = synchronise_batch_norms(model, self.accelerator.device)
        if state is not None:
            model.load_state_dict(load_file(self.output / "last" / checkpoint.MODEL))
        self._build_loaders()
        updates = self._updates_per_epoch()
        self.trainer = Trainer(
            model.to(self.accelerator.device),
            self.recipe,
            self.plan,
            updates_per_epoch=updates,
            num_classes=self.data.num_classes,
            seed=self.seed,
            accelerator=self.accelerator,
            teacher=self._teacher(),
            fsdp=self.options.fsdp,
        )
        if state is not None:
            self._take_up(state)
        if self.is_main:
            self.output.mkdir(parents=True, exist_ok=True)
            if self.options.tensorboard:
                self.board = tensorboard_writer(self.output, self.epoch)
            # The run may have ended between the checkpoint of an epoch and what follows it.
            self._keep_best()
            checkpoint.tidy(self.output, keep_every=self.options.keep_every)
            self._write_rows()
        self.accelerator.wait_for_everyone()

    def _check_same(self, state: Mapping[str, Any]) -> None:
        differing = checkpoint.differences(self.identity(), state)
        if differing:
            raise CheckpointError(f"{self.output} has another run: {'; '.join(differing)}")

    def _teacher(self) -> nn.Module | None:
        teacher = build_teacher(self.recipe, self.data.num_classes)
        return None if teacher is None else teacher.to(self.accelerator.device)

    def _build_loaders(self) -> None:
        common: dict[str, Any] = {
            "batch_size": self.plan.micro * self.plan.processes,
            "rank": self.accelerator.process_index,
            "processes": self.plan.processes,
            "workers": self.options.workers,
            "device": self.accelerator.device,
        }
        if self.options.save_every and isinstance(self.data.train, IterableDataset):
            raise DataError(
                "data that is streamed can't be taken up in mid-epoch: leave out save_every"
            )
        self.train_loader = training_loader(self.data.train, self.recipe, seed=self.seed, **common)
        self.test_loader = evaluation_loader(self.data.test, self.recipe, **common)

    def _updates_per_epoch(self) -> int:
        images = stream_size(self.train_loader.dataset)
        if images is None:
            updates = len(self.train_loader) // self.plan.accumulation
        else:  # as of any data; timm's length would depend on the number of workers
            updates = images // self.plan.total
        if not updates:
            raise DataError(f"{self.data.name} has fewer images than one update, {self.plan.total}")
        return updates

    def _take_up(self, state: Mapping[str, Any]) -> None:
        folder = self.output / "last"
        self.trainer.load_state(checkpoint.load_training(folder, state))
        if self.trainer.ema is not None:
            self.trainer.load_averaged_weights(load_file(folder / checkpoint.EMA))
        self.epoch, self.batch = state["epoch"], state["batch"]
        self.history = [EpochRow(**row) for row in state["history"]]
        self.totals = Totals(self.accelerator, state["totals"])

    def one_epoch(self, on_update: Callable[[Update], object] | None) -> EpochRow:
        """Trains from where the run is to the end of the epoch, evaluates, and saves."""
        if self.accelerator.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.accelerator.device)
        self._set_position()
        for update in self.trainer.epoch(self.train_loader, self.epoch, first=self.batch):
            self.totals.add(update)
            self.batch = update.index + 1
            if on_update is not None:
                on_update(update)
            every = self.options.save_every
            if every and self.batch % every == 0 and self.batch < self.trainer.updates_per_epoch:
                self._save()
        row = self._row(update.lr)
        self.history.append(row)
        self.epoch, self.batch, self.totals = self.epoch + 1, 0, Totals(self.accelerator)
        self._save()
        if self.is_main:
            self._keep_best()
            checkpoint.tidy(self.output, keep_every=self.options.keep_every)
            self._write_rows()
            if self.board is not None:
                write_scalars(self.board, row)
        return row

    def _keep_best(self) -> None:
        """Points at the last checkpoint if it ends the most accurate epoch so far."""
        if not self.history or self.batch:
            return
        if best_epoch(self.history) is self.history[-1]:
            checkpoint.point(self.output, "best", (self.output / "last").resolve())

    def _set_position(self) -> None:
        dataset = self.train_loader.dataset
        if isinstance(dataset, Ordered):
            dataset.set_position(self.epoch, self.batch * self.plan.accumulation)
        else:
            dataset.set_epoch(self.epoch)

    def _row(self, lr: float) -> EpochRow:
        totals = self.totals.mean()
        means = totals["means"]
        taken = 1 - means["skipped"]
        accuracy = self._evaluate(self.trainer.classifier)
        averaged = None
        if self.trainer.ema is not None:
            averaged = self._evaluate(self.trainer.ema.module)
        seconds = totals["seconds"]
        return EpochRow(
            epoch=self.epoch + 1,
            updates=(self.epoch + 1) * self.trainer.updates_per_epoch,
            lr=lr,
            losses={
                name.removeprefix("loss."): mean
                for name, mean in means.items()
                if name.startswith("loss.")
            },
            gradient_norm=means["gradient_norm"] / taken if taken else None,
            top1=accuracy.top1,
            top5=accuracy.top5,
            test_loss=accuracy.loss,
            ema_top1=averaged.top1 if averaged else None,
            seconds=seconds,
            images_per_second=totals["updates"] * self.plan.total / seconds,
            gpu_hours=seconds * self.plan.processes / 3600,
            peak_memory=self._peak_memory(),
            skipped_updates=round(means["skipped"] * totals["updates"]),
            ema_top5=averaged.top5 if averaged else None,
        )

    def _evaluate(self, model: nn.Module) -> Accuracy:
        stand_in = None
        if self.trainer.sharded:
            size = self.recipe.img_size
            stand_in = torch.zeros(1, 3, size, size, device=self.accelerator.device)
        with self.trainer.precision.autocast():
            return evaluate_model(model, self.test_loader, self.accelerator, stand_in=stand_in)

    def _peak_memory(self) -> int | None:
        device = self.accelerator.device
        if device.type != "cuda":
            return None
        peak = torch.tensor(torch.cuda.max_memory_allocated(device), device=device)
        return int(self.accelerator.reduce(peak, reduction="sum"))

    def _save(self) -> None:
        totals = self.totals.mean() if self.totals.updates else None
        # The processes may have to gather them.
        weights, averaged = self.trainer.weights(), self.trainer.averaged_weights()
        training = self.trainer.state()
        if self.is_main:
            checkpoint.save_checkpoint(
                self.output,
                self.epoch * self.trainer.updates_per_epoch + self.batch,
                {
                    **self.identity(),
                    "epoch": self.epoch,
                    "batch": self.batch,
                    "history": [asdict(row) for row in self.history],
                    "totals": totals,
                    "environment": self.facts,
                },
                model=weights,
                training=training,
                ema=averaged,
            )
        self.accelerator.wait_for_everyone()

    def _write_rows(self) -> None:
        lines = [json.dumps(asdict(row)) + "\n" for row in self.history]
        write_whole(self.output / "epochs.jsonl", "".join(lines))

    def finish(self) -> dict[str, Any]:
        """The result, which is written too."""
        model, sharded = self.trainer.model, self.trainer.sharded
        if sharded:  # each process has a part of it only
            start = replace(self.start, pretrained=False, checkpoint=None)
            model = build_model(start, self.recipe, self.data.num_classes)
        result = result_row(
            model,
            self.identity(),
            self.recipe,
            self.history,
            self.plan,
            self.facts,
            device=self.accelerator.device.type,
            sharded=sharded,
        )
        if self.is_main:
            write_whole(self.output / "result.json", json.dumps(result, indent=2))
        if self.board is not None:
            self.board.close()
        self.accelerator.wait_for_everyone()
        return result


def train(
    start: Start,
    data: Data,
    recipe: Recipe,
    output: str | Path,
    *,
    options: Options | None = None,
    seed: int = 0,
    resume: bool = False,
    cpu: bool = False,
    on_begin: Callable[[BatchPlan, int], object] | None = None,
    on_update: Callable[[Update], object] | None = None,
    on_epoch: Callable[[EpochRow], object] | None = None,
) -> dict[str, Any]:
    """Trains a model, and leaves checkpoints, rows and the result in a folder.

    Under ``torchrun`` or ``accelerate launch`` every process calls this with the same arguments.
    On the CPU in one process the weights are the same, bit for bit, however often the run was
    interrupted and resumed, and for any number of workers.

    Args:
        start: The model, and what it begins with.
        data: What it learns and is tested on.
        recipe: How.
        output: The run's folder: ``last`` and ``best`` lead to checkpoints (see
            `efficient_vits.training.checkpoint`), ``epochs.jsonl`` has a row per epoch,
            ``result.json`` the result.
        options: How it is carried out.
        seed: Of everything random.
        resume: Go on from the last checkpoint in `output`, if there is one.
        cpu: Leave accelerators alone.
        on_begin: Gets the plan of a batch and the number of updates per epoch.
        on_update: Called after every update, in every process.
        on_epoch: Called after every epoch, in the first process.

    Returns:
        The result: a row that `efficient_vits.results` reads.

    Raises:
        FileExistsError: `output` has a run, and `resume` is not set.
        CheckpointError: What is to be resumed is damaged, or another run.
        NotFiniteError: The loss or its gradient is not finite. The last checkpoint stays.
        StartError: The model can't be built with these arguments.
        RecipeError: The teacher doesn't know the data's classes.
        BatchError: The batch can't be shared equally.
        RuntimeError: This Python process had a run on another kind of device.
        DataError: The data is smaller than a batch, or can't be read.
    """
    run = _Run(start, data, recipe, Path(output), options or Options(), seed, cpu)
    run.prepare(resume=resume)
    if on_begin is not None:
        on_begin(run.plan, run.trainer.updates_per_epoch)
    while run.epoch < recipe.epochs:
        row = run.one_epoch(on_update)
        if on_epoch is not None and run.is_main:
            on_epoch(row)
    return run.finish()
