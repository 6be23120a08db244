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
from timm.models import (
    build_model_with_cfg,
    generate_default_cfgs,
    register_model,
    resolve_pretrained_cfg,
)
from torch import nn

from efficient_vits import catalog
from efficient_vits._fit import checkpoint_filter
from efficient_vits._harmless import harmless_settings
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


def pretrained_cfgs(name: str) -> dict[str, dict[str, Any]]:
    """Entries of the ``pretrained_cfg`` of each tag: where weights are, how they were trained.

    For timm's repositories that is timm's own record; a tag that the installed timm does not know
    is left out. So is what belongs to the model and not to its weights, and the address of the
    authors' own file with the way to read it, which has other names.
    """
    own = (
        *("architecture", "tag", "url", "custom_load"),
        *("fixed_input_size", "pool_size", "first_conv", "classifier"),
    )
    found: dict[str, dict[str, Any]] = {}
    for entry in catalog.published_weights(name):
        organisation, _, repository = entry.hub_id.partition("/")
        if organisation == "timm":
            if repository in timm.list_pretrained(f"{repository.partition('.')[0]}.*"):
                record = timm.get_pretrained_cfg(repository).to_dict(remove_null=True)
                found[entry.tag] = {k: v for k, v in record.items() if k not in own}
        elif entry.tag:
            found[entry.tag] = {"license": entry.licence.lower(), **_place(entry)}
    return found


def _place(entry: catalog.PublishedWeights) -> dict[str, str]:
    if not entry.hub_id:
        return {"url": entry.source}
    filename = {"hf_hub_filename": entry.hub_filename} if entry.hub_filename else {}
    return {"hf_hub_id": entry.hub_id, **filename}


SOURCES = ("state_dict", "file", "hf_hub_id", "url")


def _is_published(name: str, arguments: Mapping[str, Any]) -> bool:
    """Whether the weights that a call asks for are published ones, and not the caller's own.

    Raises:
        RuntimeError: There are none at all; what there is instead is said.
    """
    cfg = resolve_pretrained_cfg(
        name,
        pretrained_cfg=arguments.get("pretrained_cfg"),
        pretrained_cfg_overlay=arguments.get("pretrained_cfg_overlay"),
    )
    if not any(getattr(cfg, source) for source in SOURCES):
        raise RuntimeError(describe_lack(name))
    places = [default_cfgs[name].cfgs[tag] for tag in default_cfgs[name].tags]
    published = {(place.hf_hub_id, place.url) for place in places}
    own = cfg.state_dict or cfg.file or cfg.source
    return not own and (cfg.hf_hub_id, cfg.url) in published


def describe_lack(name: str) -> str:
    """Why ``pretrained=True`` has nothing to load, and what is nearest."""
    card = catalog.cards().get(name)
    text = f"No pretrained weights exist for {name} that can be downloaded by themselves"
    if card is None:
        return text
    by_hand = [entry for entry in card.weights if not entry.tag]
    if card.no_weights:
        text += f": {card.no_weights}"
    text += "."
    if by_hand:
        call = f"create_model({name!r}{', ' if by_hand[0].arguments else ''}{by_hand[0].arguments})"
        text += (
            f" By hand: {by_hand[0].address} (licence {by_hand[0].licence}) goes into "
            f"efficient_vits.load_weights(timm.{call}, file)."
        )
    if card.warm_start:
        text += (
            f" The nearest beginning is efficient_vits.warm_start(model, "
            f"timm.create_model({card.warm_start!r}, pretrained=True))."
        )
    elif not by_hand:
        text += " Nothing published has its parts; train it from the start, with pretrained=False."
    return text


def add_entry_point(
    name: str,
    create: Callable[..., nn.Module],
    *,
    doc: str,
    cfg: Mapping[str, Any],
    feature_cfg: Mapping[str, Any],
    merge: Callable[[dict[str, Any]], dict[str, Any]],
    filter_fn: Callable[..., dict[str, Any]] = checkpoint_filter,
    check_trained: Callable[[dict[str, Any]], None] = lambda arguments: None,
) -> None:
    """Make `name` a model of timm's registry, with the weights that the catalog has for it.

    Models keep the arguments that they were created with as `creation_arguments`, and weights from
    the Hub are compared with the Hub's hash of them before they are loaded.

    Args:
        name: Model name, free in the registry.
        create: Builds the model from keyword arguments; unknown ones raise TypeError.
        doc: Docstring of the entry point.
        cfg: Entries of the ``pretrained_cfg`` that differ from `DEFAULT_CFG`.
        feature_cfg: How ``features_only=True`` takes its maps.
        merge: Adds the model's defaults to the arguments of a call.
        filter_fn: What weights go through, ``(state_dict, model) -> state_dict``.
        check_trained: Raises if published weights are not right with the arguments of a call.
    """
    check_free([name])

    def entry_point(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        if pretrained and _is_published(name, kwargs):
            check_trained(kwargs)
        with harmless_settings():
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
    cfgs = {
        f"{name}.{tag}": {**DEFAULT_CFG, **cfg, **own} for tag, own in pretrained_cfgs(name).items()
    }
    default_cfgs.update(generate_default_cfgs(cfgs or {name: {**DEFAULT_CFG, **cfg}}))
    register_model(entry_point)
