"""What a run begins with: a new model, published weights, or another run's checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
from timm.layers import LayerScale
from torch import nn

from efficient_vits.training.checkpoint import EMA, MODEL, CheckpointError, load_state
from efficient_vits.training.recipe import Recipe, RecipeError
from efficient_vits.weights import load_weights, read_state_dict


class StartError(ValueError):
    """A model that can't be built as it was asked for."""


@dataclass(frozen=True)
class Start:
    """A model and where its weights come from.

    Attributes:
        model: Name for timm.
        arguments: Further arguments of the model, as JSON has them.
        pretrained: Begin with the weights that are published under this name.
        checkpoint: Begin with the weights of this checkpoint; None for new ones.
        lineage: The runs that led to the checkpoint, the first one first.
    """

    model: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    pretrained: bool = False
    checkpoint: str | None = None
    lineage: tuple[Mapping[str, Any], ...] = ()


def from_checkpoint(folder: str | Path) -> Start:
    """The model of a checkpoint, and the story of its weights.

    Args:
        folder: A checkpoint, or a run's folder, of which the best one is taken.

    Raises:
        CheckpointError: There is none, or it is damaged.
    """
    folder = checkpoint_folder(folder)
    state = load_state(folder)
    step = {
        "checkpoint": str(folder),
        "sha256": state["sha256"][MODEL],
        "model": state["model"],
        "recipe": state["recipe"],
        "data": state["data"],
        "num_classes": state["num_classes"],
        "epochs": state["epoch"],
        "environment": state["environment"],
    }
    return Start(
        model=state["model"],
        arguments=state["arguments"],
        checkpoint=str(folder),
        lineage=(*state["lineage"], step),
    )


def checkpoint_folder(folder: str | Path) -> Path:
    """A checkpoint's folder, or the best one of a run's."""
    folder = Path(folder)
    for name in ("best", "last"):
        if (folder / name).exists():
            return folder / name
    if not folder.exists():
        raise CheckpointError(f"no checkpoint at {folder}")
    return folder


def build_model(start: Start, recipe: Recipe, num_classes: int) -> nn.Module:
    """A model for the recipe's images and this many classes, on the CPU.

    Weights of another resolution are resampled; a classifier for other classes begins anew.

    Raises:
        CheckpointError, WeightsError: The weights can't be read or are not this model's.
        StartError: timm can't build the model with these arguments, or there are no such weights.
    """
    config = timm.get_pretrained_cfg(start.model)
    sized = {"img_size": recipe.img_size} if config is not None and config.fixed_input_size else {}
    try:
        model: nn.Module = timm.create_model(
            start.model,
            pretrained=start.pretrained,
            num_classes=num_classes,
            drop_rate=recipe.drop_rate,
            drop_path_rate=recipe.drop_path_rate,
            **{**start.arguments, **sized},
        )
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise StartError(
            f"{start.model} can't be built with {dict(start.arguments)}, {recipe.img_size} px"
            f"{' and published weights' if start.pretrained else ''}: {error}"
        ) from error
    if start.checkpoint is not None:
        _load(model, Path(start.checkpoint))
    elif not start.pretrained and recipe.layer_scale is not None:
        for module in model.modules():
            if isinstance(module, LayerScale):
                nn.init.constant_(module.gamma, recipe.layer_scale)
    return model


def build_teacher(recipe: Recipe, num_classes: int) -> nn.Module | None:
    """The recipe's teacher with its weights; None if it has none.

    Raises:
        RecipeError: The teacher has another number of classes.
    """
    if recipe.teacher is None:
        return None
    if Path(recipe.teacher).exists():
        folder = checkpoint_folder(recipe.teacher)
        state = load_state(folder)
        own = Recipe(**state["recipe"])
        teacher: Any = build_model(from_checkpoint(folder), own, state["num_classes"])
        teacher.pretrained_cfg.update(mean=own.mean, std=own.std)
    else:
        teacher = timm.create_model(recipe.teacher, pretrained=True)
    if teacher.num_classes != num_classes:
        raise RecipeError(
            f"the teacher {recipe.teacher} knows {teacher.num_classes} classes, the data has "
            f"{num_classes}"
        )
    return teacher


def _load(model: nn.Module, folder: Path) -> None:
    """Weights of a checkpoint: the averaged ones if there are any."""
    file = folder / (EMA if (folder / EMA).exists() else MODEL)
    state = read_state_dict(file)
    own = model.state_dict()
    for name in _classifier(model):
        if name in state and name in own and state[name].shape != own[name].shape:
            state[name] = own[name]
    load_weights(model, state)


def _classifier(model: Any) -> list[str]:
    """Names of the classifier's parameters."""
    heads = (model.pretrained_cfg or {}).get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else heads
    return [f"{head}.{leaf}" for head in heads for leaf in ("weight", "bias")]
