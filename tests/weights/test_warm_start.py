"""A plain ViT's weights as the beginning of a variant, with an account of every entry."""

import pytest
import timm
import torch
from timm.models import VisionTransformer

from efficient_vits import load_weights, replace_attention, warm_start
from efficient_vits._fit import fits
from efficient_vits.catalog import cards
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


@pytest.mark.parametrize(
    "name",
    ["vit_tiny_patch16_224", "deit_tiny_patch16_224", "deit3_small_patch16_224"],
)
def test_after_it_a_hybrid_starts_where_the_vit_was(name):
    """Blocks whose attention is untouched compute what they did, up to the first that is new."""
    small = {**TINY, "depth": 4}
    source = timm.create_model(name, **small).eval()
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model = create_vit(**small, **HOST).eval()
    replace_attention(model, "hydra", blocks=[3])
    replace_attention(model, "linformer", blocks=[2], k=8)
    account = warm_start(model, source)
    assert account.unused == []
    assert account.new == [f"blocks.2.attn.proj_{part}" for part in "kv"]
    x = torch.randn(2, 3, 64, 64)
    ours = model.forward_intermediates(x, intermediates_only=True)
    theirs = source.forward_intermediates(x, intermediates_only=True)
    for index in (0, 1):
        torch.testing.assert_close(ours[index], theirs[index], atol=1e-5, rtol=1e-5)
    for index in (2, 3):
        assert not torch.allclose(ours[index], theirs[index], atol=1e-3)
    # Each new block, too, has the ViT's own queries, keys, values and MLP.
    for index in (2, 3):
        mine, its = model.blocks[index], source.blocks[index]
        assert torch.equal(mine.attn.qkv.weight, its.attn.qkv.weight)
        tokens = torch.randn(1, 17, 32)
        torch.testing.assert_close(mine.mlp(mine.norm2(tokens)), its.mlp(its.norm2(tokens)))


@pytest.mark.parametrize(
    ("attention", "reduction"),
    [
        *((name, None) for name in ("hydra", "linear", "nystrom", "linformer", "performer")),
        ("hydra", "tome"),
        ("softmax", "evit"),
        ("softmax", "dynamicvit"),
    ],
)
def test_any_variant_takes_all_of_a_vit(attention, reduction):
    source = VisionTransformer(**TINY)
    model = create_vit(**TINY, **HOST, attention=attention, reduction=reduction)
    account = warm_start(model, source)
    assert account.unused == []
    assert set(account.new).isdisjoint(source.state_dict())
    assert set(account.kept) | set(account.new) == model.state_dict().keys()


FOREIGN = {
    "distilled DeiT": ("deit_tiny_distilled_patch16_224", "a distillation token"),
    "EVA-02": ("eva02_tiny_patch14_224", "as in BEiT and EVA"),
    "BEiT": ("beit_base_patch16_224", "biases apart"),
    "CLIP": ("vit_base_patch16_clip_224", "a norm before the blocks"),
    "registers": ("vit_small_patch14_reg4_dinov2", "registers"),
}


@pytest.mark.parametrize(("name", "reason"), FOREIGN.values(), ids=FOREIGN)
def test_what_computes_otherwise_than_a_vit_is_refused(name, reason):
    sizes = {k: v for k, v in TINY.items() if k != "patch_size"}
    patch = 14 if "14" in name else 16
    sizes["img_size"] = 4 * patch
    source = timm.create_model(name, **sizes)
    model = create_vit(**TINY, **HOST)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(WeightsError, match=reason):
        warm_start(model, source)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


NEAREST = sorted({card.name for card in cards().values() if card.no_weights and card.warm_start})


@pytest.mark.parametrize("name", [n for n in NEAREST if "_ti" in n or n == "sinkhorn_cait_s16"])
def test_the_nearest_that_the_catalog_names_fits(name):
    """By shapes alone, at full size: a third of its tensors is carried over, or more."""
    model = timm.create_model(name, device="meta")
    source = timm.create_model(cards()[name].warm_start.partition(".")[0], device="meta")
    best = max(fits(model, source.state_dict()), key=lambda fit: len(fit.values))
    assert len(best.values) > len(source.state_dict()) / 3
