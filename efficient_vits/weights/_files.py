"""Reading a state dict from a file or a wrapper, without running anything that is in it."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from efficient_vits._harmless import harmless_settings
from efficient_vits._state import WeightsError, opened


def read_state_dict(source: str | Path | Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors by name from a safetensors or PyTorch file, or from a mapping.

    Wrappers such as ``{"model": ...}`` are opened, and the prefixes of data-parallel (``module.``)
    and compiled (``_orig_mod.``) models taken off.

    Raises:
        WeightsError: No such file, neither format, or something else than tensors inside.
    """
    content = source if isinstance(source, Mapping) else _read_file(Path(source))
    return opened(content)


def _read_file(path: Path) -> Mapping[str, Any]:
    try:
        if not path.is_file():
            raise WeightsError(f"no file {path}")
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with harmless_settings():
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
