"""A plain ViT's checkpoint as the beginning of a variant."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from efficient_vits._fit import Fit, fits
from efficient_vits._state import WeightsError, overwrite
from efficient_vits.weights._files import read_state_dict

# Parameters by which a transformer computes otherwise than the plain ViT. Without them the rest of
# its weights means nothing, unless the model has them too.
FOREIGN = {
    r"^blocks\.\d+\.attn\.[qkv]_bias$": "biases apart from the projection, as in BEiT and EVA",
    r"^blocks\.\d+\.attn\.[qkv]_proj\.": "queries, keys and values apart, as in EVA-02",
    r"^blocks\.\d+\.attn\.[qk]_norm\.": "normed queries and keys",
    r"^blocks\.\d+\.(attn|mlp)\.norm\.": "norms inside attention or MLP, as in EVA-02",
    r"^blocks\.\d+\.attn\.relative_position_bias_table$": "relative positions, as in BEiT",
    r"^blocks\.\d+\.mlp\.(fc1_[gx]|w\d+)\.": "gated MLPs, as in EVA-02 and DINOv2-g",
    r"^(rope|rel_pos_bias)\.": "positions of its own kind in every block",
    r"^norm_pre\.": "a norm before the blocks, as in CLIP",
    r"^reg_token$": "registers",
    r"^(dist_token|head_dist\.\w+)$": "a distillation token, as in distilled DeiT",
}


@dataclass(frozen=True)
class WarmStart:
    """What `warm_start` did.

    Attributes:
        layout: Whose names the source had.
        kept: Entries of the model that have the source's values.
        resampled: Those of them that were brought to the model's resolution.
        new: Entries of the model that the source has nothing for; they are as they were.
        unused: Entries of the source that the model has no place for.
    """

    layout: str
    kept: list[str]
    resampled: list[str]
    new: list[str]
    unused: list[str]


def warm_start(model: nn.Module, source: str | Path | Mapping[str, Any] | nn.Module) -> WarmStart:
    """Carry over what fits from another model's weights, such as a plain ViT's into a variant.

    Takes timm's ViT, DeiT without distillation and DeiT-3, however trained, every model of this
    package, and authors' releases. A class-token slot in the position embedding and absent
    LayerScale are converted exactly. What the model has and the source has not stays as it is; a
    classifier of another size stays new.

    Args:
        model: The model to start; it keeps its device and dtype.
        source: A model, a file or a state dict, as `load_weights` takes it.

    Returns:
        The account of every entry.

    Raises:
        WeightsError: The file cannot be read, nothing in it fits, or the source computes otherwise
            than a plain ViT (relative or rotary positions, gated MLPs, registers, a distillation
            token and the like) and the model does not do so too; the model is as it was.
        ValueError: The model is on the meta device.
    """
    if any(p.is_meta for p in model.parameters()):
        raise ValueError("the model is on the meta device and has no memory to load into")
    state = source.state_dict() if isinstance(source, nn.Module) else read_state_dict(source)
    best = max(fits(model, state), key=lambda fit: len(fit.values))
    if not best.values:
        raise WeightsError(f"nothing in these weights fits {type(model).__name__}")
    _refuse_foreign(model, best)
    overwrite(model, best.values)
    return WarmStart(
        best.layout,
        kept=list(best.values),
        resampled=best.resampled,
        new=[name for name in model.state_dict() if name not in best.values],
        unused=[name for name in best.state if name not in best.values],
    )


def _refuse_foreign(model: nn.Module, fit: Fit) -> None:
    """Raise if the source is no plain ViT, in a way that the model isn't either."""
    found = {
        what: [name for name in fit.unexpected if re.search(pattern, name)]
        for pattern, what in FOREIGN.items()
    }
    found = {what: names for what, names in found.items() if names}
    if found:
        reasons = "; ".join(f"{what} ({names[0]})" for what, names in found.items())
        raise WeightsError(
            f"these weights are no beginning for {type(model).__name__}, which lacks {reasons}; "
            f"accepted are a plain ViT, DeiT without distillation, DeiT-3, and models of this "
            f"package"
        )
