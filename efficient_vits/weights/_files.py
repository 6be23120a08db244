"""Reading a state dict from a file or a wrapper, without running anything that is in it."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from efficient_vits._state import WeightsError, put

WRAPPERS = ("model", "state_dict", "model_state")


def read_state_dict(source: str | Path | Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors by name from a safetensors or PyTorch file, or from a mapping.

    Wrappers such as ``{"model": ...}`` are opened, and the prefixes of data-parallel (``module.``)
    and compiled (``_orig_mod.``) models taken off.

    Raises:
        WeightsError: No such file, neither format, or something else than tensors inside.
    """
    content = source if isinstance(source, Mapping) else _read_file(Path(source))
    while wrapper := next((key for key in WRAPPERS if isinstance(content.get(key), Mapping)), None):
        content = content[wrapper]
    alien = [
        repr(key)
        for key, value in content.items()
        if not (isinstance(key, str) and isinstance(value, Tensor))
    ]
    if alien:
        raise WeightsError(
            f"a state dict maps names to tensors, but {_some(alien)} "
            f"{'is' if len(alien) == 1 else 'are'} something else; wrappers that are opened: "
            f"{', '.join(WRAPPERS)}"
        )
    state: dict[str, Tensor] = {}
    for key, value in content.items():
        put(state, _strip(key), value)
    return state


def _strip(key: str) -> str:
    key = key.replace("_orig_mod.", "")
    while key.startswith("module."):
        key = key[len("module.") :]
    return key


def _read_file(path: Path) -> Mapping[str, Any]:
    try:
        if not path.is_file():
            raise WeightsError(f"no file {path}")
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} is not a PyTorch file of tensors alone; nothing in it was run. If it is your "
            f"own, save model.state_dict()"
        ) from error
    except WeightsError:
        raise
    except Exception as error:  # whatever the readers stumble over in a damaged file
        reason = (str(error).splitlines() or [""])[0]
        raise WeightsError(
            f"cannot read weights from {path}: {type(error).__name__} {reason}".rstrip()
        ) from error
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds a {type(content).__name__}, not a state dict")
    return content


def _some(names: list[str], most: int = 5) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
