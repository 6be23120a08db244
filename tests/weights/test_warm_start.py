"""A plain ViT's weights as the beginning of a variant, with an account of every entry."""

import pytest
import timm
import torch
from timm.models import VisionTransformer

from efficient_vits import load_weights, warm_start
from efficient_vits.models import create_vit
from efficient_vits.weights import WeightsError

TINY = {"img_size": 64, "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 4}
TINY |= {"num_classes": 5}
HOST = {"no_embed_class": True, "init_values": 1e-4}


def test_a_plain_vit_into_hydra():
    source = VisionTransformer(**TINY)
    model = create_vit(**TINY, **HOST, attention="hydra")
    account = warm_start(model, source)
    assert account.layout == "timm ViT"
    assert account.new == []
    assert account.unused == []
    assert torch.equal(model.blocks[1].attn.qkv.weight, source.blocks[1].attn.qkv.weight)
    assert torch.equal(model.pos_embed, source.pos_embed[:, 1:])
    assert torch.equal(model.cls_token, source.cls_token + source.pos_embed[:, :1])
    assert (model.blocks[0].ls1.gamma == 1).all()


def test_what_the_source_lacks_stays_and_what_the_model_lacks_is_named(tmp_path):
    path = tmp_path / "vit.pt"
    torch.save({"model": VisionTransformer(**TINY).state_dict()}, path)
    model = create_vit(**{**TINY, "num_classes": 3}, **HOST, attention="linformer", qkv_bias=False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    account = warm_start(model, path)
    after = model.state_dict()
    projections = [f"blocks.{i}.attn.proj_{p}" for i in range(2) for p in "kv"]
    assert sorted(account.new) == [*projections, "head.bias", "head.weight"]
    assert all(torch.equal(before[name], after[name]) for name in account.new)
    biases = [f"blocks.{i}.attn.qkv.bias" for i in range(2)]
    assert sorted(account.unused) == [*biases, "head.bias", "head.weight"]
    assert set(account.kept) | set(account.new) == set(after)


def test_another_resolution_is_resampled():
    source = create_vit(**TINY, **HOST)
    model = create_vit(**{**TINY, "img_size": (96, 64)}, **HOST)
    account = warm_start(model, source)
    assert account.resampled == ["pos_embed"]
    source.set_input_size((96, 64))
    assert torch.equal(model.pos_embed, source.pos_embed)


def test_after_it_a_model_that_fits_is_the_same_as_loaded():
    source = create_vit(**TINY, **HOST, attention="hydra")
    started, loaded = (create_vit(**TINY, **HOST, attention="hydra") for _ in range(2))
    assert warm_start(started, source).layout == "efficient_vits"
    load_weights(loaded, source.state_dict())
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(started.eval()(x), loaded.eval()(x))


def test_nothing_that_fits_is_an_error_and_changes_nothing():
    model = create_vit(**TINY)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(WeightsError, match="nothing in these weights fits ComposableViT"):
        warm_start(model, {"conv1.weight": torch.zeros(3)})
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with pytest.raises(ValueError, match="meta"):
        warm_start(timm.create_model("vit_ti16", device="meta"), model)
