"""What is measured or estimated: a forward pass, or a whole training step."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import timm.optim
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from efficient_vits.efficiency.inputs import state_of
from efficient_vits.efficiency.storages import (
    GRADIENTS,
    INPUTS,
    OPTIMIZER,
    WEIGHTS,
    StorageTracker,
)

_NO_MODE = contextlib.nullcontext()
AMP_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def amp_dtype(amp: bool | str | None, device_type: str) -> torch.dtype | None:
    """The dtype of autocast, None without it.

    Args:
        amp: "bfloat16", "float16", True for torch's own choice on such a device (float16 on CUDA,
            bfloat16 on the CPU), None or False for no autocast.
        device_type: "cpu" or "cuda".

    Raises:
        ValueError: anything else.
    """
    if amp is None or amp is False:
        return None
    if amp is True:
        return torch.float16 if device_type == "cuda" else torch.bfloat16
    if amp not in AMP_DTYPES:
        accepted = ", ".join(map(repr, AMP_DTYPES))
        raise ValueError(f"amp is {accepted}, True, False or None, got {amp!r}")
    return AMP_DTYPES[amp]


def chosen_optimizer(training: bool, optimizer: str | None, grad_checkpointing: bool) -> str | None:
    """Name of a training step's optimizer, "lamb" where none is given; None for a forward pass.

    Raises:
        ValueError: a forward pass is to have what only training has.
    """
    if training:
        return "lamb" if optimizer is None else optimizer
    if optimizer is not None:
        raise ValueError(f"optimizer={optimizer!r} needs training=True; a forward pass has none")
    if grad_checkpointing:
        raise ValueError(
            "grad_checkpointing=True needs training=True; a forward pass keeps nothing"
        )
    return None


def set_checkpointing(model: nn.Module) -> None:
    """Turns on gradient checkpointing, as models of timm allow.

    Raises:
        ValueError: the model has no such switch, or refuses.
    """
    switch = getattr(model, "set_grad_checkpointing", None)
    if switch is None:
        raise ValueError(
            f"grad_checkpointing=True needs a model with set_grad_checkpointing(True), as timm's "
            f"have; {type(model).__name__} has none"
        )
    try:
        switch(True)
    except (AssertionError, RuntimeError, NotImplementedError) as error:
        raise ValueError(f"{type(model).__name__} cannot checkpoint: {error}") from error


def create_optimizer(model: nn.Module, name: str) -> torch.optim.Optimizer:
    """An optimizer by timm's name, its learning rate 1e-3 and weight decay 0.05.

    Raises:
        ValueError: timm knows no such optimizer.
    """
    known = timm.optim.list_optimizers()
    if name not in known:
        raise ValueError(f"optimizer is a name that timm knows ({', '.join(known)}), got {name!r}")
    optimizer: torch.optim.Optimizer = timm.optim.create_optimizer_v2(
        model, opt=name, lr=1e-3, weight_decay=0.05
    )
    return optimizer


def loss_terms(model: nn.Module) -> Iterator[Tensor]:
    """Terms that modules announce: scalars in their attribute ``auxiliary_loss``."""
    for module in model.modules():
        term = getattr(module, "auxiliary_loss", None)
        if isinstance(term, Tensor):
            yield term


class Step:
    """One step on the same images again and again.

    In evaluation this is a forward pass in eval mode without gradients. In training it is the
    forward pass in train mode, cross entropy against fixed labels (the classes being dimension 1;
    several outputs are added up) and the loss terms that modules announce, the backward pass, the
    optimizer's step, and the release of the gradients.

    Args:
        model: the model; training changes it.
        images: a batch.
        optimizer: of the model's parameters; None for a forward pass only.
        dtype: of autocast, None for none.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        optimizer: torch.optim.Optimizer | None,
        dtype: torch.dtype | None,
    ) -> None:
        self.model, self.images, self.optimizer = model, images, optimizer
        self.labels: list[Tensor] = []
        self._autocast: Callable[[], contextlib.AbstractContextManager[Any]] = (
            contextlib.nullcontext
            if dtype is None
            else functools.partial(torch.autocast, images.device.type, dtype=dtype)
        )

    def __call__(self) -> None:
        self.differentiate()
        self.update()

    def differentiate(self) -> None:
        """The forward pass, in training with the backward pass."""
        if self.optimizer is None:
            # Not inference mode: there, dispatch modes see whole functions and miss what they
            # allocate in between.
            with torch.no_grad(), self._autocast():
                self.model(self.images)
            return
        with self._autocast():
            loss = self._loss(self.model(self.images))
        # The copies of weights that autocast keeps for the forward pass are gone by now.
        # Tensor.backward and torch.autograd.backward turn torch's function modes off, and what
        # checkpoints compute again has to be computed as it was.
        engine: Any = torch.autograd.Variable._execution_engine
        engine.run_backward(
            (loss,),
            (torch.ones_like(loss),),
            False,
            False,
            (),
            allow_unreachable=True,
            accumulate_grad=True,
        )

    def update(self) -> None:
        """The optimizer's step, if there is an optimizer."""
        if self.optimizer is not None:
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

    def resident(self) -> dict[str, list[Tensor]]:
        """Tensors that are there between the steps, by kind."""
        state = dict(self.optimizer.state) if self.optimizer else {}
        return {
            WEIGHTS: list(state_of(self.model)),
            INPUTS: [self.images, *self.labels],
            OPTIMIZER: [leaf for leaf in tree_leaves(state) if isinstance(leaf, Tensor)],
        }

    def _loss(self, outputs: Any) -> Tensor:
        scores = [
            leaf
            for leaf in tree_leaves(outputs)
            if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.ndim > 1
        ]
        if not scores:
            raise ValueError(
                f"training needs an output (batch, classes, ...) to take the cross entropy of; "
                f"{type(self.model).__name__} gave {type(outputs).__name__}"
            )
        if not self.labels:
            self.labels = [
                torch.zeros(score.shape[:1] + score.shape[2:], dtype=torch.long).to(score.device)
                for score in scores
            ]
        terms = [
            nn.functional.cross_entropy(score, labels)
            for score, labels in zip(scores, self.labels, strict=True)
        ]
        return torch.stack([*terms, *loss_terms(self.model)]).sum()


def track(
    step: Step, tracker: StorageTracker, mode: contextlib.AbstractContextManager[Any] = _NO_MODE
) -> dict[str, int]:
    """Bytes by kind at the highest moment of one more step.

    Args:
        step: what to do.
        tracker: sees it.
        mode: of fake tensors, or one that does nothing. The optimizer's step is done without it, so
            that the optimizer's own scalars are real: it may read them.
    """
    for kind, tensors in step.resident().items():
        tracker.add(tensors, kind)
    tracker.reset_peak()
    hooks = [
        parameter.register_post_accumulate_grad_hook(lambda p: tracker.add([p.grad], GRADIENTS))
        for parameter in step.model.parameters()
        if parameter.requires_grad
    ]
    try:
        with mode, tracker:
            step.differentiate()
        with tracker:
            step.update()
    finally:
        for hook in hooks:
            hook.remove()
    return tracker.peak
