"""The module that holds every entry point, as timm's registry wants it.

timm files a model under the last component of its entry point's ``__module__``; with all of them
here, ``timm.list_models(module="efficient_vits")`` is exactly this package's.
"""

import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

import timm
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from efficient_vits._hub_cache import verified

default_cfgs: dict[str, Any] = {}
__all__: list[str] = []

DEFAULT_CFG: Mapping[str, Any] = {
    "url": "",
    "num_classes": 1000,
    "input_size": (3, 224, 224),
    "pool_size": None,
    "crop_pct": 0.9,
    "interpolation": "bicubic",
    "mean": IMAGENET_DEFAULT_MEAN,
    "std": IMAGENET_DEFAULT_STD,
}

# Arguments of a call that say where weights come from and where the model goes, not what it is.
CALL_ONLY = {*inspect.signature(build_model_with_cfg).parameters, "device", "dtype"}


def check_free(names: list[str]) -> None:
    """Raise if one of `names` is in timm's registry already."""
    taken = [name for name in names if timm.is_model(name)]
    if taken:
        owners = ", ".join(
            f"{name} (by {timm.model_entrypoint(name).__module__})" for name in taken
        )
        raise ValueError(f"timm's registry already has {owners}; choose other names")


def add_entry_point(
    name: str,
    create: Callable[..., nn.Module],
    *,
    doc: str,
    cfg: Mapping[str, Any],
    feature_cfg: Mapping[str, Any],
    merge: Callable[[dict[str, Any]], dict[str, Any]],
    weights: Mapping[str, Mapping[str, Any]] | None = None,
    filter_fn: Callable[..., dict[str, Any]] | None = None,
) -> None:
    """Make `name` a model of timm's registry.

    Models keep the arguments that they were created with as `creation_arguments`, and weights from
    the Hub are compared with the Hub's hash of them before they are loaded.

    Args:
        name: Model name, free in the registry.
        create: Builds the model from keyword arguments; unknown ones raise TypeError.
        doc: Docstring of the entry point.
        cfg: Entries of the ``pretrained_cfg`` that differ from `DEFAULT_CFG`.
        feature_cfg: How ``features_only=True`` takes its maps.
        merge: Adds the model's defaults to the arguments of a call.
        weights: Published weights: timm's tag -> entries of the ``pretrained_cfg`` that say where
            they are and what they were trained with. The first is taken for ``pretrained=True``.
        filter_fn: What published weights go through, ``(state_dict, model) -> state_dict``.
    """
    check_free([name])

    def entry_point(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        model = build_model_with_cfg(
            create,
            name,
            pretrained,
            pretrained_filter_fn=verified(filter_fn, kwargs.get("cache_dir")),
            feature_cfg=dict(feature_cfg),
            **merge(kwargs),
        )
        model.creation_arguments = {k: v for k, v in kwargs.items() if k not in CALL_ONLY}
        return model

    entry_point.__name__ = entry_point.__qualname__ = name
    entry_point.__module__ = __name__
    entry_point.__doc__ = doc
    setattr(sys.modules[__name__], name, entry_point)
    cfgs = {f"{name}.{tag}": {**DEFAULT_CFG, **cfg, **own} for tag, own in (weights or {}).items()}
    default_cfgs.update(generate_default_cfgs(cfgs or {name: {**DEFAULT_CFG, **cfg}}))
    register_model(entry_point)
