"""Files in the layouts of authors' releases load strictly, and give the authors' outputs.

``authors/`` holds what was recorded from the authors' code: names, shapes and the first logits of
one image, under weights that follow from the names (``tests/reference/fill.py``), with the
arguments that make our model theirs. The weights themselves are nobody's.
"""

import argparse
import importlib.util
import json
from pathlib import Path

import pytest
import timm
import torch

import efficient_vits
from efficient_vits.catalog import cards
from efficient_vits.weights import WeightsError, load_weights

FOLDER = Path(__file__).parent / "authors"
MODELS = sorted(path.stem for path in FOLDER.glob("*.json"))
SPEC = importlib.util.spec_from_file_location(
    "reference_fill", Path(__file__).parents[1] / "reference" / "fill.py"
)
reference = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(reference)


def facts(name):
    return json.loads((FOLDER / f"{name}.json").read_text())


def authors_file(name, dtype=torch.float64):
    """A state dict as the authors' code would save it: integer tables and constants too."""
    state = {}
    for key, shape, kind in facts(name)["state"]:
        if kind.startswith("int"):
            state[key] = torch.zeros(shape, dtype=torch.int64)
        else:
            values = torch.from_numpy(reference.np.asarray(reference.fill(key, tuple(shape))))
            state[key] = values.reshape(shape).to(dtype)
    return state


@pytest.mark.parametrize("name", MODELS)
def test_an_authors_file_loads_strictly_and_computes_what_they_compute(name, tmp_path):
    recorded = facts(name)
    model = timm.create_model(name, **recorded["arguments"]).double().eval()
    path = tmp_path / "checkpoint.pth"
    settings = argparse.Namespace(lr=0.1, output_dir=tmp_path)
    torch.save({"model": authors_file(name), "epoch": 1, "args": settings}, path)
    loaded = load_weights(model, path)
    assert loaded.layout == recorded["layout"]
    assert loaded.resampled == []
    with torch.inference_mode():
        ours = model(reference.images(224, 1))[0, :32]
    theirs = torch.tensor(recorded["logits"], dtype=torch.float64)
    # Some of their code works in float32 inside; a wrong mapping is off by the order of 1.
    assert (ours - theirs).abs().max() < 1e-3 * theirs.std()


@pytest.mark.parametrize("name", MODELS)
def test_none_of_the_tensors_may_be_missing(name):
    recorded = facts(name)
    model = timm.create_model(name, device="meta", **recorded["arguments"]).to_empty(device="cpu")
    state = authors_file(name, torch.float32)
    unread = {key for key in state if key in ("cls_token",) and name == "slab_s16"}
    floats = [key for key, value in state.items() if value.is_floating_point()]
    learned = [k for k in floats if k.rpartition(".")[2] not in reference.STRUCTURAL]
    for key in {learned[0], learned[len(learned) // 2], learned[-1]} - unread:
        with pytest.raises(WeightsError, match="missing"):
            load_weights(model, {k: v for k, v in state.items() if k != key})
    with pytest.raises(WeightsError, match=r"unexpected \(1\): blocks\.nonsense"):
        load_weights(model, {**state, "blocks.nonsense": torch.zeros(1)})


@pytest.mark.parametrize("name", MODELS)
def test_the_catalog_says_which_layout_and_which_arguments(name):
    recorded = facts(name)
    by_hand = [entry for entry in cards()[name].weights if entry.layout == recorded["layout"]]
    shown = ", ".join(f"{key}={value!r}" for key, value in recorded["arguments"].items())
    if by_hand:
        assert by_hand[0].arguments == shown
    else:  # their code is known, their weights are not published at this size
        assert name in {"afno_s16", "hivit_s16"}
        assert cards()[name].no_weights


def test_queries_keys_and_values_that_wavevit_keeps_apart_become_one_layer():
    """Of softmax attention, numerically: the same product, row for row."""
    model = timm.create_model("wavevit_s")
    q, kv = torch.randn(448, 448), torch.randn(896, 448)
    state = {"block4.0.attn.q.weight": q, "block4.0.attn.kv.weight": kv}
    (fused,) = model.from_reference(state).values()
    x = torch.randn(2, 448)
    apart = torch.cat([x @ q.T, x @ kv.T], dim=1)
    torch.testing.assert_close(x @ fused.T, apart, atol=1e-4, rtol=1e-5)


def test_a_network_without_layer_scale_is_one_whose_scale_is_one():
    small = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 64}
    without = timm.create_model("afno_s16", fc_norm=False, init_values=0, **small).eval()
    model = timm.create_model("afno_s16", fc_norm=False, **small).eval()
    state = {k.replace(".attn.", ".filter."): v for k, v in without.state_dict().items()}
    assert not any(".ls" in key for key in state)
    assert efficient_vits.load_weights(model, state).layout == "authors"
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(model(x), without(x))
    # A file that has some of them, and not all, is damaged.
    state["blocks.0.ls1.gamma"] = torch.ones(32)
    with pytest.raises(WeightsError, match=r"blocks\.1\.ls1\.gamma"):
        efficient_vits.load_weights(model, state)
