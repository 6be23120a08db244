"""What a repository's ``config.json`` may say: which model, with which plain arguments."""

import inspect
import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import timm
import torch
from timm.models import build_model_with_cfg

from efficient_vits._state import WeightsError

# What would have timm take the weights from elsewhere.
SOURCES = ("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source")
# Arguments of timm's that say how weights are loaded, where from and how strictly.
LOADING = {
    *inspect.signature(build_model_with_cfg).parameters,
    *inspect.signature(timm.create_model).parameters,
} - {"kwargs"}

_WORD = re.compile(r"[A-Za-z0-9_+-]{0,64}")


@dataclass(frozen=True)
class Config:
    """The part of a ``config.json`` that makes the model.

    Attributes:
        architecture: A name of timm's registry.
        model_args: Arguments of the model: numbers, words and lists of them.
    """

    architecture: str
    model_args: dict[str, Any]


def check_config(config: Any, repo: str) -> Config:
    """Accept a configuration that names a registered model and plain arguments, and no more.

    Args:
        config: Content of ``config.json``.
        repo: Whose, for messages.

    Raises:
        WeightsError: It names something else; nothing was imported, built or loaded.
    """
    if not isinstance(config, Mapping):
        raise _refusal(repo, f"is a {type(config).__name__}, not an object")
    architecture = config.get("architecture")
    if not isinstance(architecture, str) or not timm.is_model(architecture):
        raise _refusal(
            repo,
            f"names the architecture {_shown(architecture)}, which is not in timm's registry; "
            f"accepted are the names of timm.list_models()",
        )
    pretrained_cfg = config.get("pretrained_cfg", config)  # repositories of old have one level
    if not isinstance(pretrained_cfg, Mapping):
        raise _refusal(repo, f"has pretrained_cfg={_shown(pretrained_cfg)}, not an object")
    for key in SOURCES:
        if pretrained_cfg.get(key):
            raise _refusal(
                repo,
                f"wants weights from elsewhere: {key}={_shown(pretrained_cfg[key])}; accepted are "
                f"the files of the repository itself",
            )
    arguments = config.get("model_args") or {}
    if not isinstance(arguments, Mapping):
        raise _refusal(repo, f"has model_args={_shown(arguments)}, not an object")
    for name, value in arguments.items():
        if name in LOADING or not _is_word(name):
            raise _refusal(repo, f"has a model argument {_shown(name)}, which is no model's")
        if not is_plain(value):
            raise _refusal(
                repo,
                f"has the model argument {name}={_shown(value)}; accepted are numbers, words of "
                f"letters, digits, - and _, and lists of them",
            )
    return Config(architecture, dict(arguments))


def is_plain(value: Any, depth: int = 3) -> bool:
    """Whether a value is a number, a word, None, or a small structure of these."""
    if isinstance(value, float):
        return math.isfinite(value)
    if value is None or isinstance(value, bool | int):
        return True
    if isinstance(value, str):
        return _is_word(value)
    if depth and isinstance(value, list | tuple):
        return all(is_plain(one, depth - 1) for one in value)
    if depth and isinstance(value, Mapping):
        return all(_is_word(k) and is_plain(one, depth - 1) for k, one in value.items())
    return False


def check_weights(config: Config, path: Path, repo: str) -> None:
    """Compare the names and shapes in a safetensors file with those of the model, on meta.

    Only models of this package are built; of timm's others not all can be without memory.

    Raises:
        WeightsError: The arguments make no model, or one with other parameters.
    """
    if not timm.list_models(config.architecture, module="efficient_vits"):
        return
    try:
        with warnings.catch_warnings(), torch.device("meta"):
            warnings.simplefilter("ignore")  # initialising on meta does nothing, and says so
            model = timm.create_model(config.architecture, **config.model_args)
    except (AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise _refusal(
            repo, f"has arguments that {config.architecture} does not take: {_first_line(error)}"
        ) from error
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    with safetensors.safe_open(path, framework="pt") as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    different = sorted(
        name for name in {*expected, *found} if expected.get(name) != found.get(name)
    )
    if different:
        raise WeightsError(
            f"{path.name} of {repo} has other weights than {config.architecture} with the "
            f"arguments of its config.json; {len(different)} differ, the first is {different[0]}: "
            f"{found.get(different[0], 'missing')}, want {expected.get(different[0], 'none')}"
        )


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and _WORD.fullmatch(value) is not None


def _refusal(repo: str, what: str) -> WeightsError:
    return WeightsError(f"config.json of {repo} {what}. Nothing was loaded")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
