"""Deterministic weights and images, for comparing our models with the benchmark's own code.

Both sides fill their weights by the *reference's* parameter names, so that only names, shapes and
outputs have to be stored: per model ``<name>.json`` (what the reference is) and ``<name>.npz`` (its
logits under these weights). Adding the two files adds the model to ``tests/test_reference.py``.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

HERE = Path(__file__).parent

# Buffers that follow from the architecture: neither filled nor loaded.
STRUCTURAL = {"attn_mask", "relative_coords_table", "w_ll", "w_lh", "w_hl", "w_hh", "filters"}


def fill(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Values of the floating-point tensor `name`: float64, the same on every machine.

    Norm weights and LayerScale lie around 1 and weights are scaled by their fan-in, so that every
    tensor matters to the output and a wrong token mixer cannot hide.
    """
    leaf = name.rsplit(".", 1)[-1]
    z = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if leaf == "running_var":
        return 0.5 + np.abs(z)
    if len(shape) >= 2:
        return 0.2 * z if shape[0] == 1 else z / np.sqrt(np.prod(shape[1:]))
    if leaf.endswith("bias") or leaf == "running_mean":
        return 0.1 * z
    return np.asarray(1 + 0.1 * z)


def images(img_size: int, batch: int = 2) -> Tensor:
    """The input batch, (batch, 3, img_size, img_size), float64."""
    shape = (batch, 3, img_size, img_size)
    return torch.from_numpy(np.random.RandomState(0).standard_normal(shape))


def spec(model: str) -> dict:
    """Facts about the reference that `model`, our name, must equal.

    Keys: ``reference`` (its name there), ``reference_args``, ``img_size``, ``params``, ``flops``
    (None where it could not be counted), ``state`` ([name, shape, dtype] of every entry of its
    state dict), ``aliases`` (second name of a tensor -> first), ``dtype`` of the recorded forward
    pass, ``deterministic`` (False: the reference draws random numbers in eval mode, so that there
    are no logits to compare).
    """
    return json.loads((HERE / f"{model}.json").read_text(encoding="utf-8"))


def state_dict(model: str, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """The reference's filled state dict, under the reference's names.

    Integer and boolean buffers are left out, except k-means' ``initted``, which is set; so are
    structural ones. A tensor with two names has the first name's values under both.
    """
    out, facts = {}, spec(model)
    for name, shape, kind in facts["state"]:
        if name.rsplit(".", 1)[-1] in STRUCTURAL:
            continue
        if kind.startswith(("float", "bfloat")):
            values = fill(facts["aliases"].get(name, name), tuple(shape))
            out[name] = torch.from_numpy(np.asarray(values)).to(dtype)
        elif name.endswith("initted"):
            out[name] = torch.ones(shape, dtype=torch.bool)
    return out


def logits(model: str) -> Tensor:
    """The reference's logits for `images` under `state_dict`, (2, 1000), float64."""
    with np.load(HERE / f"{model}.npz") as file:
        return torch.from_numpy(file["logits"])


def distance(ours: Tensor, model: str) -> float:
    """Largest error over the reference's mean difference between its two images.

    Relative to what tells two images apart, so that a model that ignores its input is far off;
    where two images hardly differ, relative to 1 % of the spread of the logits.
    """
    theirs = logits(model)
    signal = max((theirs[0] - theirs[1]).abs().mean(), 0.01 * theirs.std())
    return float((ours.double() - theirs).abs().max() / signal)
