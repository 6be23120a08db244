"""Whether files from the Hugging Face Hub are what the Hub says they are.

The Hub names each file by its content: large files by their SHA-256, the others as git does, by the
SHA-1 of a header and the content. It sends the name as the ETag, and the client's cache keeps each
file under it. The client itself compares sizes only.
"""

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from torch import Tensor, nn

from efficient_vits._state import WeightsError

Filter = Callable[..., dict[str, Any]]

# What timm looks for in a repository, in its order.
WEIGHTS_NAMES = ("model.safetensors", "pytorch_model.bin")

_CHUNK = 2**20


def content_name(path: Path, like: str) -> str | None:
    """The name that the Hub gives a file with this content.

    Args:
        path: The file.
        like: A name from the Hub, which tells the kind of hash.

    Returns:
        64 hexadecimal digits (SHA-256) or 40 (git's SHA-1) as in `like`, None where `like` is
        neither.
    """
    if re.fullmatch("[0-9a-f]{64}", like):
        digest = hashlib.sha256()
    elif re.fullmatch("[0-9a-f]{40}", like):
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    else:
        return None
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def check_cached(path: Path, repo_id: str) -> None:
    """Compare a file of the cache with the name that the Hub gave it.

    Where the cache keeps plain files instead of links (Windows without developer mode), the name is
    not known and nothing is compared.

    Raises:
        WeightsError: It has another content. The file is then taken out of the cache, so that it
            can be downloaded anew.
    """
    if not path.is_symlink():
        return
    # One link only: behind it may be one more, into a store that all repositories share.
    blob = path.parent / os.readlink(path)
    found = content_name(path, blob.name)
    if found is None or found == blob.name:
        return
    path.unlink()
    blob.unlink()
    raise WeightsError(
        f"{path.name} of {repo_id} is damaged: the Hub says {_shown(blob.name)}, its content has "
        f"{_shown(found)}. It is not loaded and was taken out of the cache; load again to download "
        f"it anew"
    )


def verified(filter_fn: Filter, cache_dir: str | Path | None) -> Filter:
    """A filter for timm that checks downloaded weights before they reach the model.

    Args:
        filter_fn: What the weights go through then, ``(state_dict, model) -> state_dict``.
        cache_dir: Folder of the cache; None for the client's own.
    """

    def check_then_filter(state: dict[str, Tensor], model: nn.Module) -> dict[str, Any]:
        for path, repo_id in _downloaded(model.pretrained_cfg, cache_dir):  # type: ignore[arg-type]
            check_cached(path, repo_id)
        return filter_fn(state, model)

    return check_then_filter


def _downloaded(cfg: Mapping[str, Any], cache_dir: str | Path | None) -> list[tuple[Path, str]]:
    """The cached weights that a ``pretrained_cfg`` points at, and their repository."""
    if not cfg.get("hf_hub_id") or cfg.get("file") or cfg.get("state_dict"):
        return []
    repo_id, _, revision = cfg["hf_hub_id"].partition("@")
    named = cfg.get("hf_hub_filename")
    names = [named] if named else list(WEIGHTS_NAMES)
    names += [f"{name[: -len('.bin')]}.safetensors" for name in names if name.endswith(".bin")]
    cached = (
        try_to_load_from_cache(repo_id, name, cache_dir=cache_dir, revision=revision or None)
        for name in dict.fromkeys(names)
    )
    return [(Path(path), repo_id) for path in cached if isinstance(path, str)]


def _shown(name: str) -> str:
    return f"{'SHA-256' if len(name) == 64 else 'git SHA-1'} {name[:12]}..."
