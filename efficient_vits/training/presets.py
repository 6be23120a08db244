"""The benchmark's recipes by name: Tables 1, 2 and the last column of Table 6 of its supplement.

``digits`` is the one that runs anywhere: scikit-learn's handwritten digits as small images, trained
from nothing, so with the learning rate and the number of epochs of pre-training.
"""

import re
from typing import Any, Literal

from efficient_vits._nearest import nearest
from efficient_vits.results import PrintedRun, table6
from efficient_vits.training.recipe import Recipe, RecipeError

Phase = Literal["pre-train", "fine-tune"]

_PRETRAIN = {"epochs": 90, "lr": 3e-3}

PRESETS: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(name="pretrain", **_PRETRAIN),
        Recipe(name="pretrain-192", img_size=192, **_PRETRAIN),
        Recipe(name="finetune"),
        Recipe(name="finetune-384", img_size=384),
        Recipe(name="cars", epochs=2000, batch_size=1024),
        Recipe(name="flowers", epochs=2000, batch_size=256),
        Recipe(name="places"),
        Recipe(
            name="digits",
            **_PRETRAIN,
            img_size=64,
            batch_size=64,
            warmup_epochs=1,
            hflip=0.0,
            cutmix=0.0,
            three_augment=("grayscale", "blur"),
        ),
    )
}

# Table 6's names of settings that are a recipe's; "world_size" is the number of processes, which
# the global batch size makes irrelevant.
_SETTINGS = {"lr": "lr", "opt_eps": "optimizer_eps", "amp": "amp"}
_NO_RECIPE = {"world_size"}


def preset(name: str, *, model: str | None = None) -> Recipe:
    """One of the recipes, with what the benchmark set otherwise for this model.

    Args:
        name: "pretrain" (ImageNet-21k at 224 px), "pretrain-192", "finetune" (ImageNet-1k),
            "finetune-384", "cars", "flowers", "places" or "digits".
        model: A name of the catalog. For pre-training and for fine-tuning on ImageNet-1k its
            settings are those of its most accurate run in Table 6; None, or a model that is not in
            the table, has the settings of all.

    Raises:
        RecipeError: There is no recipe of this name.
    """
    if name not in PRESETS:
        raise RecipeError(f"no preset {name!r}{nearest(name, PRESETS)}")
    recipe = PRESETS[name]
    if model is None:
        return recipe
    if name.startswith("pretrain"):
        changes = _settings(model, "pre-train", lambda run: run.pretrain_size == recipe.img_size)
    elif name.startswith("finetune"):
        # EfficientFormerV2 and FocalNet ran at 382 px where the others ran at 384.
        changes = _settings(
            model, "fine-tune", lambda run: abs(run.img_size - recipe.img_size) <= 2
        )
    else:
        changes = {}
    return recipe.with_changes(**changes)


def _settings(model: str, phase: Phase, wanted: Any) -> dict[str, Any]:
    """Non-default settings of the most accurate run among the wanted ones; of all, if none is."""
    runs = [run for run in table6() if run.name == model]
    if not runs:
        return {}
    best = max([run for run in runs if wanted(run)] or runs, key=lambda run: run.top1 or 0.0)
    return run_settings(best, phase)


def run_settings(run: PrintedRun, phase: Phase) -> dict[str, Any]:
    """The settings of a run in Table 6 that differ from Table 1, by their names in a `Recipe`."""
    changes: dict[str, Any] = {}
    for kind, settings in re.findall(r"([a-z-]+): \[([^]]*)\]", run.run_parameters):
        if kind not in ("both", phase):
            continue
        for setting in settings.split(","):
            name, _, value = setting.strip().partition("=")
            if name not in _NO_RECIPE:
                changes[_SETTINGS[name]] = value == "True" if name == "amp" else float(value)
    return changes
