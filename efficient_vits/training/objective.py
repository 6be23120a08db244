"""What is minimised: the task's loss, the model's own terms, and a teacher's."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efficient_vits._auxiliary import auxiliary_loss
from efficient_vits.reduction.dynamicvit import distill
from efficient_vits.training.recipe import Recipe


class Objective(nn.Module):
    """A model with its loss. One module, so that what distributes a model sees the whole pass.

        loss = (1 - a) * criterion(logits, targets) + a * teacher's term + auxiliary terms

    a is 0 without a teacher. "hard" is DeiT's (arXiv 2012.12877, section 4): cross entropy with the
    teacher's class; "soft" the divergence from its softened classes, times the squared temperature;
    "dynamicvit" adds DynamicViT's own sum to the task's whole loss.

    Args:
        model: Takes images (B, 3, height, width), gives logits (B, classes).
        criterion: The task's loss of logits and targets.
        recipe: Kind and weight of the distillation, mean and std of the images.
        teacher: A model of timm's with as many classes, for a recipe with distillation.
    """

    def __init__(
        self, model: nn.Module, criterion: nn.Module, recipe: Recipe, teacher: nn.Module | None
    ) -> None:
        super().__init__()
        if (teacher is None) != (recipe.distillation is None):
            raise ValueError("a recipe with distillation needs a teacher, and only such a one")
        self.model = model
        self.criterion = criterion
        self.recipe = recipe
        # In a list, so that it is no part of what is trained, wrapped and saved.
        self._teacher: list[nn.Module] = []
        if teacher is not None:
            self._teacher.append(teacher.eval().requires_grad_(False))

    def forward(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """The terms of the loss by name; their sum is to be minimised.

        Args:
            images: (B, 3, height, width), normalised by the recipe's mean and std.
            targets: Classes (B), or their shares (B, classes).
        """
        if self.recipe.distillation == "dynamicvit":
            logits, from_teacher = distill(
                self.model, _Seeing(self._teacher[0], self.recipe), images
            )
            terms = {
                "task": self.criterion(logits.float(), targets),
                "distillation": from_teacher.float(),
            }
        else:
            logits = self.model(images).float()
            terms = {"task": self.criterion(logits, targets)}
            if self._teacher:
                weight = self.recipe.distillation_weight
                terms["task"] = (1 - weight) * terms["task"]
                terms["distillation"] = weight * self._distance(logits, images)
        # A module's terms are left in it by the pass that has just been.
        return {**terms, "auxiliary": auxiliary_loss(self.model)}

    def logits(self, images: Tensor) -> Tensor:
        """The model's (B, classes) alone."""
        out: Tensor = self.model(images)
        return out

    def _distance(self, logits: Tensor, images: Tensor) -> Tensor:
        with torch.no_grad():
            aims = _Seeing(self._teacher[0], self.recipe)(images).float()
        if self.recipe.distillation == "hard":
            return F.cross_entropy(logits, aims.argmax(dim=1))
        temperature = self.recipe.temperature
        return temperature**2 * F.kl_div(
            (logits / temperature).log_softmax(dim=1),
            (aims / temperature).log_softmax(dim=1),
            reduction="batchmean",
            log_target=True,
        )


class _Seeing:
    """A teacher that gets the images in its own normalisation."""

    def __init__(self, teacher: Any, recipe: Recipe) -> None:
        config = getattr(teacher, "pretrained_cfg", None) or {}
        self.teacher, self.recipe = teacher, recipe
        self.mean = config.get("mean", recipe.mean)
        self.std = config.get("std", recipe.std)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.teacher, name)

    def __call__(self, images: Tensor) -> Tensor:
        logits: Tensor = self.teacher(self._own(images))
        return logits

    def forward_features(self, images: Tensor) -> Tensor:
        features: Tensor = self.teacher.forward_features(self._own(images))
        return features

    def _own(self, images: Tensor) -> Tensor:
        def channels(values: Any) -> Tensor:
            return images.new_tensor(values).view(1, -1, 1, 1)

        plain = images * channels(self.recipe.std) + channels(self.recipe.mean)
        return (plain - channels(self.mean)) / channels(self.std)
