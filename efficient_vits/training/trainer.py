"""The training loop: one model, one recipe, any number of processes.

Accelerate starts the processes' group and wraps the model; schedule, optimizer, mixing, losses and
averaging are timm's. Every update begins with random generators that are seeded by its number, so a
run that is taken up again needs no state of theirs.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from efficient_vits._repbn import ProgressiveRepBN, set_progress
from efficient_vits.training.batches import BatchPlan
from efficient_vits.training.data import DataError
from efficient_vits.training.health import NotFiniteError, diagnose
from efficient_vits.training.loaders import seed_all
from efficient_vits.training.objective import Objective
from efficient_vits.training.precision import Precision, exact_dtype
from efficient_vits.training.recipe import Recipe
from efficient_vits.training.sharding import (
    gathered,
    shard,
    spread_optimizer_state,
    spread_weights,
)
from efficient_vits.training.unused import unused_parameters

_UPDATE = 1  # sets the updates' random numbers apart from those of the images


class Trainer:
    """One model in training.

    Args:
        model: Takes images (B, 3, height, width), gives logits (B, classes).
        recipe: How.
        plan: How a batch is spread.
        updates_per_epoch: From the length of the data.
        num_classes: Of the data.
        seed: Of everything random.
        accelerator: The processes and the device.
        teacher: For recipes with distillation.
        fsdp: Spread parameters, gradients and optimizer state over the processes, if there are
            several.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        plan: BatchPlan,
        *,
        updates_per_epoch: int,
        num_classes: int,
        seed: int,
        accelerator: Accelerator,
        teacher: nn.Module | None = None,
        fsdp: bool = False,
    ) -> None:
        self.recipe, self.plan, self.seed, self.accelerator = recipe, plan, seed, accelerator
        self.updates_per_epoch = updates_per_epoch
        self.model = model
        self.sharded = fsdp and accelerator.num_processes > 1
        # Parameters that are spread and buffers that are not don't go into one call.
        self.ema = (
            ModelEmaV3(model, decay=recipe.ema_decay, foreach=not self.sharded)
            if recipe.ema_decay
            else None
        )
        self.mixup = (
            Mixup(
                mixup_alpha=0.0,
                cutmix_alpha=1.0,
                prob=recipe.cutmix,
                label_smoothing=recipe.label_smoothing,
                num_classes=num_classes,
            )
            if recipe.cutmix
            else None
        )
        criterion: nn.Module = (
            SoftTargetCrossEntropy()
            if self.mixup
            else LabelSmoothingCrossEntropy(recipe.label_smoothing)
        )
        objective = Objective(model, criterion, recipe, teacher)
        if self.sharded:
            # The optimizer is to see the parameters as they are from here on.
            self._shard(objective)
        self.precision = Precision(accelerator.device, mixed=recipe.amp)
        self.optimizer = create_optimizer_v2(
            model,
            opt=recipe.optimizer,
            lr=recipe.lr,
            weight_decay=recipe.weight_decay,
            eps=recipe.optimizer_eps,
            layer_decay=recipe.layer_decay,
        )
        warmup = recipe.warmup_epochs * updates_per_epoch
        self.schedule = CosineLRScheduler(
            self.optimizer,
            t_initial=recipe.epochs * updates_per_epoch - warmup,
            lr_min=recipe.min_lr,
            warmup_t=warmup,
            warmup_lr_init=recipe.warmup_lr,
            warmup_prefix=True,
            t_in_epochs=False,
        )
        self.has_progressive_norms = any(
            isinstance(module, ProgressiveRepBN) for module in model.modules()
        )
        if accelerator.num_processes > 1 and not self.sharded:
            # To look for unused parameters in every pass takes time, and torch warns if all are
            # used; not to look where some are unused is an error.
            accelerator.ddp_handler = DistributedDataParallelKwargs(
                find_unused_parameters=self._has_unused(objective)
            )
        # What is spread already is not to be wrapped again.
        self.objective = accelerator.prepare_model(objective, evaluation_mode=self.sharded)

    def _shard(self, objective: Objective) -> None:
        device = self.accelerator.device
        shard(objective, self.model, device, also="logits")
        if self.ema is not None:
            shard(self.ema.module, self.ema.module, device)

    def _has_unused(self, objective: nn.Module) -> bool:
        size, device = self.recipe.img_size, self.accelerator.device
        images = torch.randn(2, 3, size, size, device=device)
        targets = torch.zeros(2, dtype=torch.int64, device=device)
        if self.mixup is not None:
            images, targets = self.mixup(images, targets)
        return bool(unused_parameters(objective, images, targets))

    @property
    def lr(self) -> float:
        """The largest learning rate of a group of parameters."""
        return max(float(group["lr"]) for group in self.optimizer.param_groups)

    def epoch(self, loader: Any, epoch: int, first: int = 0) -> Iterator["Update"]:
        """Trains one epoch from its `first` update on, and says after each update how it went.

        Raises:
            NotFiniteError: The loss or, in float32, its gradient is not finite. The weights are
                those before this update.
            DataError: A stream has fewer images than its length.
        """
        batches = iter(loader)
        for index in range(first, self.updates_per_epoch):
            yield self._update(batches, epoch, index)

    def _update(self, batches: Iterator[Any], epoch: int, index: int) -> "Update":
        began = time.perf_counter()
        number = epoch * self.updates_per_epoch + index
        device, passes = self.accelerator.device, self.plan.accumulation
        self.objective.train()
        self.schedule.step_update(number)
        if self.has_progressive_norms:
            whole = self.recipe.epochs * self.updates_per_epoch
            set_progress(self.model, number / max(whole - 1, 1))
        terms: dict[str, Tensor] = {}
        for part in range(passes):
            images, targets = (
                x.to(device, non_blocking=True) for x in self._next(batches, epoch, index)
            )
            seeds = (self.seed, _UPDATE, number, part, self.accelerator.process_index)
            seed_all(*seeds)
            if self.mixup is not None:
                images, targets = self.mixup(images, targets)
            # Gradients are exchanged once, after the last pass.
            waiting = part < passes - 1
            with self._own_gradients() if waiting else nullcontext():
                with self.precision.autocast():
                    losses = self.objective(images, targets)
                loss = torch.stack(list(losses.values())).sum()
                if self._is_not_finite(loss):
                    self._stop("loss", epoch, index, images, targets, seeds)
                self.precision.backward(loss / passes)
            for name, value in losses.items():
                value = value.detach().to(exact_dtype(device)) / passes
                terms[name] = terms[name] + value if name in terms else value
        norm = self.precision.clip(
            self.optimizer, self.objective.parameters(), self.recipe.clip_grad
        )
        # With scaled gradients the update is left out, and the next scale is smaller.
        skipped = not bool(norm.isfinite())
        if skipped and self.precision.scaler is None:
            self._stop("gradient", epoch, index, images, targets, seeds)
        self.precision.step(self.optimizer)
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update(self.model, step=number)
        return Update(
            epoch,
            index,
            terms,
            None if skipped else norm,
            self.lr,
            time.perf_counter() - began,
        )

    @contextmanager
    def _own_gradients(self) -> Iterator[None]:
        """Every process keeps its gradients meanwhile."""
        if not self.sharded:
            with self.accelerator.no_sync(self.objective):
                yield
            return
        self.objective.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            self.objective.set_requires_gradient_sync(True)

    def _is_not_finite(self, loss: Tensor) -> bool:
        finite = torch.isfinite(loss)
        if self.sharded:
            # A process alone cannot find the reason: none has all parameters.
            finite = self.accelerator.reduce((~finite).float(), reduction="sum") == 0
        return not finite

    def _next(self, batches: Iterator[Any], epoch: int, index: int) -> Any:
        batch = next(batches, None)
        if batch is None:  # streamed data is believed what it says about its length
            raise DataError(
                f"the data ended in update {index} of epoch {epoch}; by its length there are "
                f"{self.updates_per_epoch} updates"
            )
        return batch

    def _stop(
        self,
        what: str,
        epoch: int,
        index: int,
        images: Tensor,
        targets: Tensor,
        seeds: tuple[int, ...],
    ) -> None:
        """Raises NotFiniteError with what can be found out about it."""

        def again() -> Tensor:
            seed_all(*seeds)
            if self.mixup is not None:
                self.mixup(images.clone(), targets)  # draws the same numbers as before
            objective = self.accelerator.unwrap_model(self.objective)
            with self.precision.autocast():
                losses: dict[str, Tensor] = objective(images, targets)
            return torch.stack(list(losses.values())).sum()

        raise NotFiniteError(
            f"the {what} is not finite in update {index} of epoch {epoch} (learning rate "
            f"{self.lr:.3g}, process {self.accelerator.process_index}); "
            f"images from {float(images.min()):.3g} to {float(images.max()):.3g}; "
            f"{diagnose(self.model, again)}"
        )

    @property
    def classifier(self) -> nn.Module:
        """What gives the logits (B, classes) of images, for evaluation."""
        return _Classifier(self.objective) if self.sharded else self.model

    def weights(self) -> dict[str, Tensor]:
        """State dict of the model. Every process must call this."""
        weights: dict[str, Tensor] = gathered(self.model.state_dict())
        return weights

    def averaged_weights(self) -> dict[str, Tensor] | None:
        """State dict of the moving average, if there is one. Every process must call this."""
        return None if self.ema is None else gathered(self.ema.module.state_dict())

    def load_averaged_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Takes back what `averaged_weights` gave."""
        if self.ema is not None:
            self.ema.module.load_state_dict(spread_weights(weights, self.ema.module))

    def state(self) -> dict[str, Any]:
        """Everything besides the weights that the next update depends on.

        Every process must call this.
        """
        scaler = self.precision.scaler
        return {
            "optimizer": gathered(self.optimizer.state_dict()),
            "scaler": None if scaler is None else scaler.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes back what `state` gave."""
        self.optimizer.load_state_dict(spread_optimizer_state(state["optimizer"], self.optimizer))
        if self.precision.scaler is not None and state["scaler"]:
            self.precision.scaler.load_state_dict(state["scaler"])


class _Classifier(nn.Module):
    """The model in an objective, run in a way that gathers its parameters."""

    def __init__(self, objective: Any) -> None:
        super().__init__()
        self.objective = objective
        self.training = objective.training

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.objective.logits(images)
        return logits


@dataclass(frozen=True)
class Update:
    """How an update went.

    Attributes:
        epoch: Number of the epoch, from 0.
        index: Number of the update in it, from 0.
        losses: The loss's terms in this process before the update, scalars.
        gradient_norm: Before clipping; None if it was too large for float16, and the update
            therefore left out.
        lr: Learning rate.
        seconds: Time that it took, loading included.
    """

    epoch: int
    index: int
    losses: dict[str, Tensor]
    gradient_norm: Tensor | None
    lr: float
    seconds: float
