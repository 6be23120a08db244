"""Every mechanism of the registries trains an epoch on digits."""

import math

import pytest

from efficient_vits.attention import attention_traits, list_attentions
from efficient_vits.mlp import list_mlps
from efficient_vits.reduction import list_reductions
from efficient_vits.training import Recipe, Start

# 4 x 4 patches: window and block sizes of the mechanisms divide them.
RECIPE = Recipe(name="tiny", epochs=1, warmup_epochs=0, batch_size=16, img_size=64, lr=3e-3)
TINY = {"depth": 4, "embed_dim": 32, "num_heads": 2}


def arguments(axis, name):
    own = {**TINY, axis: name}
    if axis == "attention":
        traits = attention_traits(name)
        if not (traits.prefix_tokens and traits.mixes_prefix):
            own.update(class_token=False, global_pool="avg")
    return own


@pytest.mark.parametrize(
    ("axis", "name"),
    [
        *(("attention", name) for name in list_attentions()),
        *(("reduction", name) for name in list_reductions()),
        *(("mlp", name) for name in list_mlps()),
    ],
)
def test_trains_an_epoch(axis, name, run, tmp_path):
    losses, norms = [], []

    def note(update):
        losses.append(sum(float(value) for value in update.losses.values()))
        norms.append(float(update.gradient_norm))

    result = run(start=Start("vit_ti16", arguments(axis, name)), recipe=RECIPE, on_update=note)
    assert len(losses) == 3
    assert all(map(math.isfinite, losses + norms))
    assert min(norms) > 0
    assert 0 <= result["top1"] <= 100
