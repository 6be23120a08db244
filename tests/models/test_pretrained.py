"""``pretrained=True``: which weights a model takes, where they lie, and what it says without any.

No test touches the network: a checkpoint is written by timm's own model and takes the path that
a downloaded one takes, ``pretrained_cfg_overlay=dict(file=...)``.
"""

import argparse
import socket

import pytest
import safetensors.torch
import timm
import torch

import efficient_vits
from efficient_vits.catalog import cards, published_weights
from efficient_vits.weights import WeightsError

OURS = timm.list_models(module="efficient_vits")
SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 64}
# A sum of the same terms in another order: float32 rounding of logits of size 1 to 10.
ROUNDING = {"rtol": 1e-5, "atol": 1e-5}


def randomised(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model.eval()


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def saved(tmp_path):
    """A file with a small timm model's random weights, and that model."""

    def save(name="vit_small_patch16_224", **arguments):
        source = randomised(timm.create_model(name, **{**SMALL, **arguments}))
        path = tmp_path / "model.safetensors"
        safetensors.torch.save_file(source.state_dict(), path)
        return source, {"file": str(path)}

    return save


@pytest.mark.parametrize("name", OURS)
def test_every_tag_is_in_the_catalog_and_every_repository_of_timm_is_one(name):
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{name}.*")]
    offered = [entry for entry in published_weights(name) if entry.tag]
    assert sorted(tags) == sorted(entry.tag for entry in offered)
    if offered:
        assert timm.get_pretrained_cfg(name).tag == offered[0].tag  # the preferred one
    for entry in offered:
        cfg = timm.get_pretrained_cfg(f"{name}.{entry.tag}")
        assert (cfg.hf_hub_id or cfg.url) == entry.source
        assert cfg.license == entry.licence.lower()
        organisation, _, repository = entry.hub_id.partition("/")
        if organisation == "timm":
            record = timm.get_pretrained_cfg(repository)
            assert record.hf_hub_id == entry.hub_id
            for key in ("mean", "std", "interpolation", "crop_pct", "num_classes", "input_size"):
                assert getattr(cfg, key) == getattr(record, key), key


def test_augreg_is_normalised_by_one_half():
    for name in ("vit_s16", "tome_s16_r8", "evit_s16", "gtp_s16"):
        cfg = timm.create_model(name, device="meta").pretrained_cfg
        assert cfg["hf_hub_id"] == "timm/vit_small_patch16_224.augreg_in21k_ft_in1k"
        assert cfg["mean"] == cfg["std"] == (0.5, 0.5, 0.5)
    deit = timm.get_pretrained_cfg("deit_s16")
    assert deit.hf_hub_id == "timm/deit3_small_patch16_224.fb_in22k_ft_in1k"
    assert deit.mean[0] == 0.485


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vit_s16", {}),
        ("tome_s16_r8", {"r": 0}),
        ("evit_s16", {"keep_rate": 1.0}),
        ("evit_fuse_s16", {"keep_rate": 1.0}),
    ],
)
def test_a_plain_vit_gives_timms_outputs(saved, name, arguments):
    source, overlay = saved()
    model = timm.create_model(
        name, pretrained=True, pretrained_cfg_overlay=overlay, **SMALL, **arguments
    ).eval()
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(model(x), source(x), **ROUNDING)
    loaded = randomised(timm.create_model(name, **SMALL, **arguments))
    efficient_vits.load_weights(loaded, overlay["file"])
    assert torch.equal(loaded(x), model(x))


def test_at_full_size(saved):
    full = {"embed_dim": 384, "depth": 12, "num_heads": 6, "img_size": 224}
    source = timm.create_model("vit_small_patch16_224").eval()
    with torch.no_grad():
        source.cls_token.normal_()
        source.head.weight.normal_(std=0.02)
    state = {"state_dict": source.state_dict()}
    model = timm.create_model(
        "vit_s16", pretrained=True, pretrained_cfg_overlay=state, **full
    ).eval()
    x = torch.randn(1, 3, 224, 224)
    torch.testing.assert_close(model(x), source(x), **ROUNDING)


@pytest.mark.parametrize("theirs", ["deit_small_patch16_224", "deit3_small_patch16_224"])
def test_deit_and_deit3(saved, theirs):
    source, overlay = saved(theirs)
    model = timm.create_model("deit_s16", pretrained=True, pretrained_cfg_overlay=overlay, **SMALL)
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(model.eval()(x), source(x), **ROUNDING)


def test_other_classes_channels_and_resolution_go_through_timms_own_paths(saved):
    source, overlay = saved()
    arguments = {**SMALL, "img_size": (96, 64), "num_classes": 10, "in_chans": 1}
    build = {"pretrained": True, "pretrained_cfg_overlay": overlay}
    model = timm.create_model("tome_s16_r8", r=0, **build, **arguments).eval()
    theirs = timm.create_model("vit_small_patch16_224", **build, **arguments).eval()
    theirs.reset_classifier(10)
    model.head.load_state_dict(theirs.head.state_dict())
    x = torch.randn(2, 1, 96, 64)
    torch.testing.assert_close(model(x), theirs(x), **ROUNDING)
    rgb = source.patch_embed.proj.weight
    torch.testing.assert_close(model.patch_embed.proj.weight, rgb.sum(dim=1, keepdim=True))
    headless = timm.create_model("vit_s16", num_classes=0, **build, **SMALL)
    assert torch.equal(headless.norm.weight, source.norm.weight)
    maps = timm.create_model("vit_s16", features_only=True, out_indices=(0, 1), **build, **SMALL)
    assert len(maps(torch.randn(1, 3, 64, 64))) == 2


def test_nothing_is_left_random_in_silence(saved):
    """timm asks nothing any more as soon as the number of classes differs."""
    _, overlay = saved()
    build = {"pretrained": True, "pretrained_cfg_overlay": overlay, "num_classes": 10, **SMALL}
    for more, missing in [
        ({"reduction": "dynamicvit"}, "predictor|norm"),
        ({"reg_tokens": 2}, "reg_token"),
        ({"global_pool": "avg"}, "fc_norm"),
    ]:
        with pytest.raises(WeightsError, match=missing):
            timm.create_model("vit_s16", **build, **more)


@pytest.mark.parametrize("axis", [{"attention": "hydra"}, {"mlp": "switch"}])
def test_weights_of_another_mechanism_are_refused_at_once(axis, no_network):
    with pytest.raises(ValueError, match="were trained with"):
        timm.create_model("vit_s16", pretrained=True, **axis)


def test_own_weights_of_any_mechanism_are_taken(saved, tmp_path):
    source = randomised(timm.create_model("vit_s16", attention="hydra", **SMALL))
    torch.save(source.state_dict(), tmp_path / "own.pth")
    overlay = {"file": str(tmp_path / "own.pth")}
    build = {"pretrained": True, "pretrained_cfg_overlay": overlay, **SMALL}
    x = torch.randn(1, 3, 64, 64)
    for name, more in (("hydra_s16", {}), ("vit_s16", {"attention": "hydra"})):
        assert torch.equal(timm.create_model(name, **build, **more).eval()(x), source(x))


@pytest.mark.parametrize("name", [n for n in OURS if not timm.list_pretrained(f"{n}.*")])
def test_a_model_without_weights_says_so_and_names_the_nearest(name, no_network):
    with pytest.raises(RuntimeError, match=f"No pretrained weights exist for {name} ") as error:
        timm.create_model(name, pretrained=True)
    card, message = cards()[name], str(error.value)
    if card.warm_start:
        assert f"warm_start(model, timm.create_model({card.warm_start!r}" in message
    for entry in card.weights[:1]:
        assert entry.address in message
    if not card.weights:
        assert card.no_weights in message
    if not card.warm_start and not card.weights:
        assert "train it from the start" in message


def test_an_authors_file_is_converted_on_the_way(tmp_path):
    """SLAB's: wrapped, with settings, a class token that is never read, and no LayerScale."""
    source = randomised(timm.create_model("slab_s16", init_values=0, **SMALL))
    state = {**source.state_dict(), "cls_token": torch.zeros(1, 1, 32)}
    assert not any(".ls" in name for name in state)
    settings = argparse.Namespace(lr=0.1, out=tmp_path)
    torch.save({"model": state, "config": settings, "epoch": 3}, tmp_path / "slab.pth")
    overlay = {"url": (tmp_path / "slab.pth").as_uri()}
    model = timm.create_model(
        "slab_s16", pretrained=True, pretrained_cfg_overlay=overlay, cache_dir=tmp_path, **SMALL
    )
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(model.eval()(x), source(x), **ROUNDING)


def test_a_trap_in_a_file_is_not_sprung(tmp_path):
    class Trap:
        def __reduce__(self):
            return open, (str(tmp_path / "sprung"), "w")

    torch.save({"model": Trap()}, tmp_path / "trap.pth")
    overlay = {"file": str(tmp_path / "trap.pth")}
    with pytest.raises(RuntimeError, match=r"io\.open"):
        timm.create_model("vit_s16", pretrained=True, pretrained_cfg_overlay=overlay, **SMALL)
    assert not (tmp_path / "sprung").exists()
