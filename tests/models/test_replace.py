"""Attention replaced in models of timm: what is kept, what is new, and what is refused."""

import copy

import pytest
import timm
import torch
from timm.models import VisionTransformer
from timm.models.beit import Beit
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva

from efficient_vits import replace_attention
from efficient_vits.attention import attention_traits, list_attentions
from efficient_vits.models import create_vit

TINY = {"img_size": 64, "patch_size": 16, "embed_dim": 32, "depth": 3, "num_heads": 4}
TINY |= {"num_classes": 5}
HOSTS = {
    "vit": (VisionTransformer, {}),
    "vit with norms": (VisionTransformer, {"qk_norm": True, "scale_attn_norm": True}),
    "vit without biases": (VisionTransformer, {"qkv_bias": False, "proj_bias": False}),
    "deit": (VisionTransformerDistilled, {}),
    "eva": (Eva, {}),
    "eva with rope": (Eva, {"use_rot_pos_emb": True, "qkv_fused": False}),
    "beit": (Beit, {"use_shared_rel_pos_bias": True, "use_abs_pos_emb": True}),
}


def host(kind):
    cls, arguments = HOSTS[kind]
    return cls(**{**TINY, **arguments}).eval()


def refused(kind, name):
    norms = {"qk_norm", "scale_norm"} if kind == "vit with norms" else set()
    return bool(norms & attention_traits(name).refuses)


def mixers_that_fit(kind):
    return [
        name
        for name in list_attentions()
        if attention_traits(name).prefix_tokens and not refused(kind, name)
    ]


@pytest.mark.parametrize("kind", HOSTS)
def test_softmax_attention_in_its_own_place_changes_nothing(kind):
    model, x = host(kind), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    expected = model(x)
    account = replace_attention(model, "softmax")
    if kind in ("eva with rope", "beit"):
        assert not torch.allclose(model(x), expected), "it has no positions in its attention"
    else:
        torch.testing.assert_close(model(x), expected)
        assert account.new == []
    assert [n for n in account.kept if n.endswith("qkv.weight")] == [
        f"blocks.{i}.attn.qkv.weight" for i in range(3)
    ]


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in HOSTS for name in mixers_that_fit(kind)]
)
def test_every_mixer_in_every_host(kind, name):
    model, x = host(kind), torch.randn(2, 3, 64, 64)
    before = dict(model.named_parameters())
    account = replace_attention(model, name)
    after = dict(model.named_parameters())
    named = {n for n in after if ".attn." in n}
    assert set(account.kept) | set(account.new) == named
    assert not set(account.kept) & set(account.new)
    gone = {n.split(".", 3)[-1] for n in before.keys() - after.keys() - set(account.dropped)}
    fused = [f"{part}_{kind}" for part in "qkv" for kind in ("bias", "proj.weight", "proj.bias")]
    assert gone <= set(fused), "neither kept nor new nor dropped"
    y = model.train()(x)
    sum(t.square().sum() for t in (y if isinstance(y, tuple) else [y])).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None and ".attn." in n] == []
    assert torch.equal(copy.deepcopy(model).eval()(x), model.eval()(x))


def test_kept_weights_are_the_old_ones():
    model = host("eva with rope")
    old = copy.deepcopy(model.blocks[1].attn)
    account = replace_attention(model, "linformer", k=7)
    new = model.blocks[1].attn
    rows = [old.q_proj.weight, old.k_proj.weight, old.v_proj.weight]
    assert torch.equal(new.qkv.weight, torch.cat(rows))
    zeros = torch.zeros(32)
    assert torch.equal(new.qkv.bias, torch.cat([old.q_proj.bias, zeros, old.v_proj.bias]))
    assert torch.equal(new.proj.weight, old.proj.weight)
    assert new.proj_k.shape == (17, 7)
    assert "blocks.1.attn.proj_k" in account.new


def test_only_the_blocks_that_are_named():
    model = host("vit")
    kinds = [type(block.attn) for block in model.blocks]
    replace_attention(model, "hydra", blocks=[0, -1])
    changed = [type(b.attn) is not kind for b, kind in zip(model.blocks, kinds, strict=True)]
    assert changed == [True, False, True]


def test_device_dtype_mode_rates_and_trainability_stay():
    model = VisionTransformer(**TINY, attn_drop_rate=0.1, proj_drop_rate=0.2, device="meta")
    model = model.to(torch.bfloat16).train()
    for p in model.blocks.parameters():
        p.requires_grad_(False)
    replace_attention(model, "hydra")
    attn = model.blocks[0].attn
    assert attn.training
    assert (attn.attn_drop.p, attn.proj_drop.p) == (0.1, 0.2)
    assert all(p.is_meta and p.dtype == torch.bfloat16 for p in attn.parameters())
    assert not any(p.requires_grad for p in attn.parameters())


def test_a_plain_host_still_scripts():
    model = timm.create_model("vit_ti16", img_size=64, depth=2).eval()
    replace_attention(model, "hydra")
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(torch.jit.script(model)(x), model(x))


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (lambda: timm.create_model("resnet18", device="meta"), "ResNet has no sequence of blocks"),
        (lambda: timm.create_model("mixer_s32_224", device="meta"), r"no layer blocks\.0\.attn"),
        (lambda: create_vit(**TINY, reduction="tome"), r"blocks\.0\.attn works together"),
    ],
)
def test_what_does_not_follow_the_convention_is_named(model, match):
    with pytest.raises(TypeError, match=match):
        replace_attention(model(), "hydra")


def test_a_model_is_changed_as_a_whole_or_not_at_all():
    model = host("vit")
    with pytest.raises(ValueError, match="block 3 is outside"):
        replace_attention(model, "hydra", blocks=[0, 3])
    model.blocks[2].attn = torch.nn.Identity()
    with pytest.raises(TypeError, match=r"blocks\.2\.attn is a Identity"):
        replace_attention(model, "hydra")
    assert type(model.blocks[0].attn).__name__ == "Attention"
    with pytest.raises(ValueError, match=r"hydra.*qk_norm"):
        replace_attention(host("vit with norms"), "hydra")
    with pytest.raises(TypeError, match="landmarks"):
        replace_attention(host("vit"), "hydra", landmarks=3)
