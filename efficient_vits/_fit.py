"""Which layout a state dict has, and how it fits a model; nothing here changes the model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from efficient_vits._layouts import LAYOUTS
from efficient_vits._state import WeightsError, opened


@dataclass(frozen=True)
class Fit:
    """A state dict in one layout, against the model.

    Attributes:
        layout: The layout it was read as.
        state: The state dict in the model's own names.
        values: What of it fits, at the model's resolution.
        resampled: Names in `values` that were brought to that resolution.
        absent: Entries of the model that the file may lack, and does.
        missing: Entries of the model that the file should have.
        unexpected: Entries of the file that the model has no place for.
        misshapen: Entries of another shape, as name -> what is wrong.
    """

    layout: str
    state: Mapping[str, Tensor]
    values: Mapping[str, Tensor]
    resampled: list[str]
    absent: list[str]
    missing: list[str]
    unexpected: list[str]
    misshapen: Mapping[str, str]

    @property
    def faults(self) -> dict[str, list[str]]:
        kinds = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "of another shape": list(self.misshapen.values()),
        }
        return {kind: names for kind, names in kinds.items() if names}


def fits(model: nn.Module, state: Mapping[str, Tensor]) -> list[Fit]:
    """How a state dict fits, read as each layout; those that cannot be read as one are left out."""
    found, reasons = [], []
    for layout, convert in LAYOUTS.items():
        try:
            found.append(fit_state(model, layout, convert(model, state)))
        except WeightsError as error:
            reasons.append(error)
    if not found:
        raise reasons[0]
    return found


def best_fit(model: nn.Module, state: Mapping[str, Tensor]) -> Fit:
    """The layout with the fewest faults."""
    return min(fits(model, state), key=lambda fit: sum(map(len, fit.faults.values())))


def fit_state(model: nn.Module, layout: str, state: Mapping[str, Tensor]) -> Fit:
    """How a state dict in the model's own names fits it."""
    target = model.state_dict()
    values, resampled, unexpected, misshapen = {}, [], [], {}
    for name, value in state.items():
        if name not in target:
            unexpected.append(name)
            continue
        adapted = value
        if value.shape != target[name].shape:
            adapted = resample(model, name, value)
        if adapted.shape != target[name].shape:
            wanted = tuple(target[name].shape)
            misshapen[name] = f"{name} {tuple(value.shape)}, want {wanted}"
            continue
        values[name] = adapted
        if adapted is not value:
            resampled.append(name)
    lacking = [name for name in target if name not in state]
    absent = [name for name in lacking if _is_structural(model, name)]
    missing = [name for name in lacking if name not in absent]
    return Fit(layout, state, values, resampled, absent, missing, unexpected, misshapen)


def _is_structural(model: nn.Module, name: str) -> bool:
    """Whether a state entry follows from the architecture: an index, a mask, a counter."""
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    if leaf not in dict(module.named_buffers(recurse=False)):
        return False
    if leaf in getattr(module, "structural_buffers", ()):
        return True
    return not module.get_buffer(leaf).is_floating_point()


def resample(model: nn.Module, name: str, value: Tensor) -> Tensor:
    """A parameter of another resolution brought to the model's; unchanged where that can't be.

    The innermost module around the parameter that knows how to does it.
    """
    path = name.split(".")
    for depth in reversed(range(len(path))):
        module: Any = model.get_submodule(".".join(path[:depth]))
        if hasattr(module, "resample_parameter"):
            resampled: Tensor = module.resample_parameter(".".join(path[depth:]), value)
            return resampled
    return value


def describe(model: nn.Module, fit: Fit) -> str:
    """Everything that does not fit, by name."""
    lines = [f"these weights do not fit {type(model).__name__}, read as {fit.layout!r}:"]
    for kind, names in fit.faults.items():
        lines.append(f"  {kind} ({len(names)}): {', '.join(names)}")
    return "\n".join(lines)


def checkpoint_filter(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """What timm's ``pretrained=True`` puts a file through: `load_weights`' layouts and resampling.

    The classifier, and a first convolution for images of other channels, are left as they are:
    timm adapts them. Nothing else may be missing or left over, although timm loads without asking
    as soon as the number of classes differs.

    Args:
        state_dict: Content of the file.
        model: The model, with its ``pretrained_cfg``.

    Raises:
        WeightsError: The weights do not belong to the model.
    """
    fit = best_fit(model, opened(state_dict))
    cfg: Any = model.pretrained_cfg
    timms = _parameters_of(cfg.get("classifier"))
    stems = _parameters_of(cfg.get("first_conv"))
    adapted = {
        name: resample(model, name, fit.state[name])
        for name in fit.misshapen
        if name in stems | timms
    }
    rest = Fit(
        fit.layout,
        fit.state,
        fit.values,
        fit.resampled,
        fit.absent,
        [name for name in fit.missing if name not in timms],
        [name for name in fit.unexpected if name not in timms],
        {name: text for name, text in fit.misshapen.items() if name not in adapted},
    )
    if rest.faults:
        raise WeightsError(describe(model, rest), rest.faults)
    absent = {name: model.state_dict()[name] for name in fit.absent}
    heads = {name: fit.state[name] for name in fit.unexpected}
    return {**absent, **fit.values, **adapted, **heads}


def _parameters_of(layers: str | tuple[str, ...] | list[str] | None) -> set[str]:
    """Weight and bias of the layers that a ``pretrained_cfg`` names."""
    names = [layers] if isinstance(layers, str) else layers or []
    return {f"{name}.{leaf}" for name in names for leaf in ("weight", "bias")}
