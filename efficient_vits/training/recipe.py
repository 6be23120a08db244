"""The recipe of a training run as data: validated, and written to and read from YAML.

The defaults are the benchmark's fine-tuning on ImageNet-1k, Table 1 of the supplement of "Which
Transformer to Favor" (arXiv 2308.09372), which follows DeiT III (arXiv 2204.07118). Where the
benchmark's code did something else than its text (no gradient clipping, a schedule that is stepped
once per epoch and late), the text holds here.
"""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.optim import list_optimizers

from efficient_vits._nearest import nearest

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(gt=0)]
Augmentation = Literal["grayscale", "solarize", "blur"]
Channels = tuple[float, float, float]


class RecipeError(ValueError):
    """A recipe with an unknown or impossible value; one line says which and what is accepted."""


class Recipe(BaseModel):
    """How a model is trained. Immutable; `with_changes` makes another.

    Attributes:
        name: What it is called; runs of other names are not compared.
        epochs: Passes over the data.
        lr: Learning rate after the warm-up.
        min_lr: Learning rate at the end of the cosine.
        warmup_lr: Learning rate of the first update.
        warmup_epochs: Epochs of linear warm-up, part of `epochs`.
        batch_size: Images per update, over all processes and accumulation steps.
        optimizer: Any of timm's.
        optimizer_eps: Its epsilon.
        weight_decay: Not for biases, norms, and what a model's ``no_weight_decay`` names.
        layer_decay: Factor on the learning rate per layer from the head down; None for none.
        clip_grad: Largest norm of the gradient; None for no clipping.
        label_smoothing: Share of the target that is spread over all classes.
        drop_path_rate: Stochastic depth of the last block; linear up to there.
        drop_rate: Dropout before the classifier.
        layer_scale: What LayerScale begins with, for models that have one.
        amp: Mixed precision where the device has it: float16 with scaled gradients on CUDA.
            Elsewhere float32.
        img_size: Height and width of the images in pixels.
        hflip: Probability of a horizontal flip.
        crop: "simple" resizes the shorter side, pads by 4 pixels and crops; "resized" is the
            Inception crop.
        three_augment: One of these at random for every image; empty for none.
        color_jitter: Strength in brightness, contrast and saturation.
        cutmix: Probability that a batch is cut and mixed.
        mean: Of the channels, for images from 0 to 1.
        std: Likewise.
        ema_decay: Decay of a moving average of the weights, which is evaluated too; None for none.
        distillation: "hard" adds cross entropy with the teacher's class (DeiT), "soft" the
            divergence from its classes, "dynamicvit" also the distance of the tokens that are kept;
            None for no teacher.
        teacher: A model of timm's with its pretrained weights, or the folder of a checkpoint.
        distillation_weight: Share of the teacher in the loss for "hard" and "soft".
        temperature: Of the classes in "soft".
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str = "finetune"
    epochs: Count = 50
    lr: Positive = 3e-4
    min_lr: NotNegative = 1e-5
    warmup_lr: NotNegative = 1e-6
    warmup_epochs: Annotated[int, Field(ge=0)] = 5
    batch_size: Count = 2048
    optimizer: str = "lamb"
    optimizer_eps: Positive = 1e-7
    weight_decay: NotNegative = 0.02
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    clip_grad: Positive | None = 1.0
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    drop_path_rate: Annotated[float, Field(ge=0, lt=1)] = 0.05
    drop_rate: Annotated[float, Field(ge=0, lt=1)] = 0.0
    layer_scale: Positive | None = 1e-4
    amp: bool = True
    img_size: Count = 224
    hflip: Fraction = 0.5
    crop: Literal["simple", "resized"] = "simple"
    three_augment: tuple[Augmentation, ...] = ("grayscale", "solarize", "blur")
    color_jitter: NotNegative = 0.3
    cutmix: Fraction = 1.0
    mean: Channels = IMAGENET_DEFAULT_MEAN
    std: Channels = IMAGENET_DEFAULT_STD
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    distillation: Literal["hard", "soft", "dynamicvit"] | None = None
    teacher: str | None = None
    distillation_weight: Fraction = 0.5
    temperature: Positive = 1.0

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise RecipeError(_one_line(error)) from error

    @model_validator(mode="after")
    def _possible(self) -> "Recipe":
        if self.optimizer not in list_optimizers():
            near = nearest(self.optimizer, list_optimizers())
            raise ValueError(f"optimizer {self.optimizer!r} is none of timm's{near}")
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs {self.warmup_epochs} must be fewer than epochs {self.epochs}"
            )
        for name in ("min_lr", "warmup_lr"):
            if getattr(self, name) > self.lr:
                raise ValueError(f"{name} {getattr(self, name):g} is above lr {self.lr:g}")
        if self.cutmix and self.batch_size % 2:
            raise ValueError(f"cutmix mixes pairs: batch_size must be even, got {self.batch_size}")
        if (self.distillation is None) != (self.teacher is None):
            raise ValueError(
                f"distillation and teacher need each other, got {self.distillation!r} and "
                f"{self.teacher!r}"
            )
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, got {self.std}")
        return self

    def with_changes(self, **values: Any) -> "Recipe":
        """This recipe with other values, validated again.

        Raises:
            RecipeError: A name or a value is not accepted.
        """
        return Recipe(**{**self.model_dump(), **values})

    def to_yaml(self) -> str:
        """All values, in the order above; `Recipe.from_yaml` gives the same recipe back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    @classmethod
    def from_yaml(cls, source: str | PathLike[str]) -> "Recipe":
        """The recipe in a YAML file. What it leaves out has its default.

        Raises:
            OSError: The file cannot be read.
            RecipeError: It is no mapping of names to values, or one of these is not accepted.
        """
        try:
            values = yaml.safe_load(Path(source).read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise RecipeError(f"{source} is no YAML: {' '.join(str(error).split())}") from error
        if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
            raise RecipeError(f"{source} is no recipe: a mapping of names to values is accepted")
        return cls(**{key: _number(value) for key, value in values.items()})


def _number(value: Any) -> Any:
    # YAML 1.1 reads 3e-4, without a dot, as a string.
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _one_line(error: ValidationError) -> str:
    """All faults, each with what was passed and what is accepted."""
    faults = []
    for fault in error.errors():
        name = ".".join(map(str, fault["loc"]))
        if fault["type"] == "extra_forbidden":
            known = list(Recipe.model_fields)
            faults.append(f"no setting {name!r}{nearest(name, known)}")
        elif not name:
            faults.append(str(fault["ctx"]["error"]))
        else:
            reason = fault["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
            faults.append(f"{name} is {fault['input']!r}, accepted: {reason}")
    return "; ".join(faults)
