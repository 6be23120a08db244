"""Wave-ViT: its sizes, token labelling, and weights in the authors' layout."""

import importlib.util
import json
from pathlib import Path

import pytest
import timm
import torch
from timm.layers import set_scriptable

import efficient_vits
from efficient_vits.attention.wavelet import BANDS
from efficient_vits.weights import WeightsError

HERE = Path(__file__).parent
SMALL = json.loads((HERE / "small" / "wavevit.json").read_text())["arguments"]


def build(**arguments):
    torch.manual_seed(0)
    return timm.create_model("wavevit_s", **{"num_classes": 7, **SMALL, **arguments}).eval()


@pytest.mark.parametrize(("size", "millions"), [("s", 22.7), ("b", 33.5), ("l", 57.5)])
def test_has_as_many_parameters_as_published(size, millions):
    """The authors count the classifier of patches."""
    model = timm.create_model(f"wavevit_{size}", token_label=True, device="meta")
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == millions


def test_cards_of_other_sizes_have_the_paper_and_no_figures():
    small, large = (efficient_vits.model_card(f"wavevit_{s}") for s in "sl")
    assert large.paper == small.paper
    assert (large.params, large.flops, large.paper_model) == (None, None, "")


def test_patches_have_a_say_of_one_half():
    model, x = build(token_label=True), torch.randn(2, 3, 64, 96)
    logits, patches = model.forward_train(x)
    assert logits.shape == (2, 7)
    assert patches.shape == (2, 2 * 3, 7)
    torch.testing.assert_close(model(x), logits + 0.5 * patches.max(dim=1)[0])
    plain = build()
    state = model.state_dict()
    assert state.keys() - plain.state_dict().keys() == {"aux_head.weight", "aux_head.bias"}
    plain.load_state_dict({k: v for k, v in state.items() if k in plain.state_dict()})
    torch.testing.assert_close(plain(x), logits)


def test_both_classifiers_train_and_are_replaced():
    model, x = build(token_label=True).train(), torch.randn(2, 3, 64, 64)
    sum(y.square().sum() for y in model.forward_train(x)).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    model.reset_classifier(3)
    assert [classifier.out_features for classifier in model.get_classifier()] == [3, 3]
    assert model(x).shape == (2, 3)
    model.reset_classifier(0)
    assert model(x).shape == (2, 48)
    with pytest.raises(ValueError, match="num_classes=0"):
        model.forward_train(x)


def test_without_a_classifier_of_patches_there_are_no_labels():
    with pytest.raises(ValueError, match="token_label=False"):
        build().forward_train(torch.randn(1, 3, 64, 64))


def test_token_labelling_scripts():
    with set_scriptable(True):
        model = build(token_label=True)
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(torch.jit.script(model)(x), model(x))


def test_class_attention_comes_back_with_the_pooling():
    model, x = build(), torch.randn(2, 3, 64, 64)
    model.reset_classifier(0, "")
    assert not any("pool" in name for name in model.state_dict())
    model.reset_classifier(5, "token")
    assert model(x).shape == (2, 5)
    assert model(x).std() > 0


def authors_state(token_label):
    """Weights as the authors' files have them: with the constants of the transform."""
    spec = importlib.util.spec_from_file_location("fill", HERE.parent / "reference" / "fill.py")
    fill = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fill)
    state = fill.state_dict("wavevit_s", torch.float32)
    for name, shape, _ in fill.spec("wavevit_s")["state"]:
        if name.split(".")[-1] in fill.STRUCTURAL:
            state[name] = torch.tensor(BANDS, dtype=torch.float16)[:1].expand(shape)
        elif name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(12)
    if token_label:
        state["aux_head.weight"] = torch.randn(1000, 448)
        state["aux_head.bias"] = torch.randn(1000)
    return state


def test_the_authors_files_load():
    state = authors_state(token_label=True)
    model = timm.create_model("wavevit_s", token_label=True)
    loaded = efficient_vits.load_weights(model, {"state_dict": state})
    assert loaded.layout == "benchmark reference"
    assert loaded.absent == []
    assert torch.equal(model.aux_head.weight, state["aux_head.weight"])
    qkv = torch.cat([state["block3.0.attn.q.weight"], state["block3.0.attn.kv.weight"]])
    assert torch.equal(model.stages[2].blocks[0].attn.qkv.weight, qkv)
    assert model.stages[0].downsample.conv1.bn.num_batches_tracked == 12


def test_what_a_file_has_too_much_or_lacks_is_named():
    with pytest.raises(WeightsError, match=r"aux_head\.bias"):
        efficient_vits.load_weights(timm.create_model("wavevit_s"), authors_state(True))
    state = authors_state(False)
    del state["block3.0.attn.q.weight"]
    with pytest.raises(WeightsError, match=r"stages\.2\.blocks\.0\.attn\.qkv\.weight"):
        efficient_vits.load_weights(timm.create_model("wavevit_s"), state)


def test_small_grids_see_all_of_the_image():
    """Keys are merged 8 x 8 in the first stage; none of a grid that is no multiple is left out."""
    stage = build().stages[0]
    block = stage.blocks[0].double()
    x = torch.randn(1, 11 * 13, 16, dtype=torch.float64)
    changed = x.clone()
    changed[:, -1, 0] += 1  # the norm would undo a shift of all channels
    moved = (block(x, (11, 13)) - block(changed, (11, 13))).abs().amax(dim=-1)[0]
    assert moved.min() > 1e-9
