"""The composable ViT: what goes together, what does not and says so, what a reduction changes."""

import dataclasses
import functools
import itertools

import pytest
import timm
import torch
from timm.layers import Attention, Mlp
from timm.models import VisionTransformer
from torch import nn

import efficient_vits
from efficient_vits.attention import attention_traits, list_attentions
from efficient_vits.attention.hydra import HydraAttention
from efficient_vits.attention.linformer import LinformerAttention
from efficient_vits.mlp import list_mlps
from efficient_vits.models import ComposableViT, ReducedViT, create_vit
from efficient_vits.models.reduced import dense_tokens, taken_blocks
from efficient_vits.reduction import ReductionTraits, list_reductions, reduction_traits
from efficient_vits.reduction.tome import ToMe

TINY = {"img_size": 128, "patch_size": 16, "embed_dim": 32, "depth": 4, "num_heads": 4}
TINY |= {"num_classes": 5, "no_embed_class": True, "init_values": 1.0}


def build(**arguments):
    return create_vit(**{**TINY, **arguments}).eval()


def images(batch=2, size=128):
    return torch.randn(batch, 3, size, size)


@pytest.mark.parametrize(
    ("attention", "reduction", "mlp"),
    list(itertools.product(list_attentions(), [None, *list_reductions()], list_mlps())),
)
def test_all_axes_combine_or_say_why_not(attention, reduction, mlp):
    traits = attention_traits(attention)
    needs = frozenset() if reduction is None else reduction_traits(reduction).needs
    arguments = {"attention": attention, "reduction": reduction, "mlp": mlp}
    if not traits.mixes_prefix:
        arguments["global_pool"] = "avg"
    fewer = reduction is not None and len({65, *build(reduction=reduction).token_counts}) > 1
    bound = fewer and (traits.token_count or traits.grid)
    # A class token that nobody pools is nothing to work on.
    unread = (
        reduction is not None and reduction_traits(reduction).prefix and not traits.mixes_prefix
    )
    if not needs <= traits.offered or bound or unread:
        with pytest.raises(ValueError, match=f"{attention}.*({reduction}|give)|{reduction}"):
            build(**arguments)
        return
    model = build(**arguments).train()
    y = model(images())
    (y.square().sum() + efficient_vits.auxiliary_loss(model)).backward()
    assert y.shape == (2, 5)
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    assert isinstance(model, ReducedViT) == (reduction is not None)


@pytest.mark.parametrize(
    "name", [n for n in list_attentions() if not attention_traits(n).mixes_prefix]
)
def test_pooling_by_a_class_token_that_sees_no_image_is_refused(name):
    with pytest.raises(ValueError, match=f"{name}.*global_pool='avg'"):
        build(attention=name)
    model = build(attention=name, global_pool="avg")
    assert (model(images()) - model(images())).abs().max() > 1e-3


def test_without_arguments_it_is_timms_vit():
    ours = build(no_embed_class=False, init_values=None)
    theirs = VisionTransformer(**{**TINY, "no_embed_class": False, "init_values": None}).eval()
    theirs.load_state_dict(ours.state_dict())
    x = images()
    assert torch.equal(ours(x), theirs(x))
    mask = torch.ones(65, 65).tril().bool()
    assert torch.equal(ours(x, attn_mask=mask), theirs(x, attn_mask=mask))
    torch.testing.assert_close(ours(x, is_causal=True), theirs(x, is_causal=True))
    assert not torch.allclose(ours(x, is_causal=True), ours(x))


@pytest.mark.parametrize(
    "attention",
    ["linformer", LinformerAttention, functools.partial(LinformerAttention, k=9)],
    ids=["name", "class", "partial"],
)
def test_a_mechanism_is_a_name_a_class_or_a_partial(attention):
    k = 9 if isinstance(attention, functools.partial) else 256
    assert build(attention=attention).blocks[0].attn.proj_k.shape == (65, k)


def test_own_arguments_reach_their_mechanism():
    model = build(attention="linformer", k=7, mlp="switch", num_experts=3)
    assert model.blocks[0].attn.proj_k.shape == (65, 7)
    assert model.blocks[0].mlp.num_experts == 3
    assert [b.between["tome"].r for b in build(reduction="tome", r=[3, 2, 1, 1]).blocks] == [
        3,
        2,
        1,
        1,
    ]


def test_a_table_row_yields_to_what_is_passed():
    small = {"depth": 2, "img_size": 64}
    assert timm.create_model("tome_ti16_r8", **small).blocks[0].between["tome"].r == 8
    assert timm.create_model("tome_ti16_r8", r=3, **small).blocks[0].between["tome"].r == 3
    partial = functools.partial(ToMe, r=2)
    model = timm.create_model("tome_ti16_r8", reduction=partial, **small)
    assert model.blocks[0].between["tome"].r == 2
    other = timm.create_model("switch8_ti16", mlp="mlp", **small)
    assert isinstance(other.blocks[0].mlp, Mlp)


class WithoutSkip(HydraAttention):
    """A mixer that a block adds nothing to."""

    traits = dataclasses.replace(HydraAttention.traits, residual=False)


class DropLast(nn.Module):
    """After each block one token less."""

    traits = ReductionTraits(place="after")

    def __init__(self, dim, depth, block):
        super().__init__()

    def num_tokens(self, n):
        return n - 1

    def forward(self, x, size, source, info):
        return x[:, :-1], size, source


def test_a_mixer_without_a_skip_connection_of_its_own_goes_with_reductions_around_the_block():
    with pytest.raises(ValueError, match=r"tome works between .*WithoutSkip"):
        build(attention=WithoutSkip, reduction="tome")
    reduced = build(attention=WithoutSkip, reduction=DropLast, drop_path_rate=0.5)
    plain = build(attention=WithoutSkip)
    assert reduced.state_dict().keys() == plain.state_dict().keys()
    assert not any("ls1" in name for name, _ in plain.named_parameters())
    assert isinstance(reduced.blocks[-1].drop_path1, nn.Identity)
    assert not isinstance(reduced.blocks[-1].drop_path2, nn.Identity)
    x = torch.randn(2, 65, 32)
    for block in (plain.blocks[0], reduced.blocks[0]):
        block.load_state_dict(plain.blocks[0].state_dict())
        y = block(x) if block is plain.blocks[0] else block(x, None, None, {})[0]
        expected = x + block.mlp(block.norm2(block.attn(block.norm1(x))))
        torch.testing.assert_close(y, expected[:, : y.shape[1]])
    assert y.shape[1] == 64


class Untold(nn.Module):
    """A mixer that knows nothing of this package."""

    def __init__(self, dim, num_heads=8, gain=1.0, device=None, dtype=None):
        super().__init__()
        self.proj = nn.Linear(dim, dim, device=device, dtype=dtype)
        self.gain = gain

    def forward(self, x, attn_mask=None, is_causal=False):
        return self.gain * self.proj(x.mean(1, keepdim=True).expand_as(x))


def test_a_plain_module_is_a_mechanism():
    model = build(attention=Untold, gain=0.5, qkv_bias=True)
    assert model.blocks[0].attn.gain == 0.5
    assert model(images()).shape == (2, 5)
    with pytest.raises(TypeError, match=r"Untold.*does not take qk_norm=True; accepted: dim"):
        build(attention=Untold, qk_norm=True)
    with pytest.raises(ValueError, match=r"tome needs \['keys'\].*Untold.*softmax"):
        build(attention=Untold, reduction="tome")


def test_timms_names_for_the_same_thing():
    assert type(build(attn_layer=HydraAttention).blocks[0].attn) is HydraAttention
    assert type(build(attn_layer="attn").blocks[0].attn) is Attention
    assert type(build(attn_layer="diff").blocks[0].attn).__name__ == "DiffAttention"
    assert build(attn_layer="diff")(images()).shape == (2, 5)
    assert type(build(mlp_layer=Mlp).blocks[0].mlp) is Mlp
    with pytest.raises(TypeError, match="attention and attn_layer"):
        build(attention="hydra", attn_layer=Attention)


def test_a_block_of_timms_replaces_ours_or_collides():
    block_fn = timm.models.vision_transformer.ResPostBlock
    model = build(block_fn=block_fn)
    assert type(model.blocks[0]) is block_fn
    assert model(images()).shape == (2, 5)
    with pytest.raises(TypeError, match="block_fn"):
        build(block_fn=block_fn, attention="hydra")
    with pytest.raises(TypeError, match="block_fn"):
        build(block_fn=block_fn, reduction="tome")


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"attention": "hidra"}, ValueError, "unknown attention 'hidra'; did you mean 'hydra'"),
        ({"reduction": "tom"}, ValueError, "unknown reduction 'tom'.*tome"),
        ({"mlp": 3}, TypeError, "mlp must be a registered name"),
        ({"keep": 1}, TypeError, "unexpected argument keep=1.*softmax: none.*Arguments of the ViT"),
        ({"k": 1}, TypeError, "unexpected argument k=1"),
        ({"prop_attn": True}, TypeError, "prop_attn=True needs a reduction"),
        ({"attention": "hydra", "qk_norm": True}, ValueError, "hydra.*qk_norm"),
        ({"attention": "linformer", "reduction": "tome"}, ValueError, "linformer.*tome"),
        ({"attention": "linformer", "dynamic_img_size": True}, ValueError, "dynamic_img_size"),
        ({"attention": "linformer", "patch_drop_rate": 0.1}, ValueError, "patch_drop_rate"),
        ({"reduction": "tome", "patch_drop_rate": 0.1}, ValueError, "patch_drop_rate"),
        ({"mlp": "switch", "scale_mlp_norm": True}, ValueError, "switch.*norm"),
        ({"num_heads": 5}, ValueError, "dim=32.*num_heads=5"),
        ({"img_size": (64, 8)}, ValueError, r"img_size=\(64, 8\) with patch_size=16; accepted"),
        ({"patch_size": 0}, ValueError, "patch_size=0; accepted are patches of at least one pixel"),
    ],
)
def test_what_cannot_work_says_so_at_construction(arguments, error, match):
    with pytest.raises(error, match=match):
        build(**arguments)


@pytest.mark.parametrize(
    "sizes", [{"img_size": (8, 64)}, {"img_size": 0}, {"patch_size": 0}, {"patch_size": (16, 1000)}]
)
def test_sizes_without_a_patch_change_nothing(sizes):
    model = build(attention="linformer")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="accepted are patches of at least one pixel"):
        model.set_input_size(**sizes)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_an_argument_of_two_mechanisms_is_ambiguous():
    class Other(nn.Module):
        def __init__(self, in_features, hidden_features=None, k=1, bias=True, act_layer=None):
            super().__init__()

    with pytest.raises(TypeError, match="'k' is an argument of linformer and Other"):
        build(attention="linformer", mlp=Other, k=4)


def test_linformer_goes_with_a_reduction_that_leaves_its_tokens():
    model = build(attention="linformer", reduction="tome", r=[0, 0, 0, 5])
    assert model.token_counts == [65, 65, 65, 60]
    assert model(images()).shape == (2, 5)


@pytest.mark.parametrize("attention", ["softmax", "hydra"])
def test_a_reduction_that_reduces_nothing_changes_nothing(attention):
    plain, reduced = build(attention=attention), build(attention=attention, reduction="tome", r=0)
    reduced.load_state_dict(plain.state_dict())
    x = images()
    assert torch.equal(reduced(x), plain(x))
    assert reduced.token_counts == plain.token_counts == [65] * 4


def test_merging_equal_tokens_changes_nothing():
    """With token sizes, equal tokens may become one: the class token cannot tell."""
    plain, reduced = build().double(), build(reduction="tome", r=16).double()
    with torch.no_grad():
        plain.pos_embed.zero_()
    reduced.load_state_dict(plain.state_dict())
    patch = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    x = patch.repeat(1, 1, 8, 8)
    assert reduced.token_counts == [49, 33, 17, 9]
    torch.testing.assert_close(reduced(x), plain(x), atol=1e-6, rtol=1e-5)  # sizes are float32
    unweighted = build(reduction="tome", r=16, prop_attn=False).double()
    unweighted.load_state_dict(plain.state_dict())
    assert (unweighted(x) - plain(x)).abs().max() > 1e-3


def test_proportional_attention_where_it_is_possible():
    assert "prop_attn=True" in repr(build(reduction="tome"))
    assert "prop_attn=False" in repr(build(reduction="tome", prop_attn=False))

    class KeysOnly(HydraAttention):
        traits = efficient_vits.attention.AttentionTraits(gives=frozenset({"keys"}))

    assert "prop_attn=False" in repr(build(attention=KeysOnly, reduction="tome"))
    with pytest.raises(ValueError, match="prop_attn=True cannot work: KeysOnly"):
        build(attention=KeysOnly, reduction="tome", prop_attn=True)


def test_a_reduced_model_takes_no_mask():
    with pytest.raises(ValueError, match="attn_mask"):
        build(reduction="tome")(images(), is_causal=True)


def test_dense_maps_put_every_patch_where_it_went():
    x = torch.arange(8.0).reshape(1, 4, 2)
    source = torch.tensor([[1, 3, -1, 1]])
    expected = torch.stack([x[0, 1], x[0, 3], torch.zeros(2), x[0, 1]])
    assert torch.equal(dense_tokens(x, source)[0], expected)


def test_intermediates_of_a_reduced_model_hold_its_tokens():
    model, x = build(reduction="tome", r=10), images()
    final, maps = model.forward_intermediates(x, norm=True, output_fmt="NLC")
    distinct = [len({tuple(t.tolist()) for t in taken[0]}) for taken in maps]
    assert distinct == [n - 1 for n in model.token_counts]
    last = {tuple(t.tolist()) for t in final[0, 1:]}
    assert {tuple(t.tolist()) for t in maps[-1][0]} == last


def test_follows_images_of_any_size():
    model = build(reduction="tome", dynamic_img_size=True)
    assert model(images(size=96)).shape == (2, 5)
    _, maps = model.forward_intermediates(images(size=96))
    assert maps[0].shape == (2, 32, 6, 6)


def test_pruned_blocks_take_their_reductions_with_them():
    model, x = build(reduction="tome"), images()
    tap = model.forward_intermediates(x, [1], intermediates_only=True)[0]
    assert model.prune_intermediate_layers([1]) == [1]
    assert len(model.blocks) == len(model.token_counts) == 2
    assert torch.equal(model.forward_intermediates(x, [1], intermediates_only=True)[0], tap)


@pytest.mark.parametrize(
    ("indices", "taken"), [(None, [0, 1, 2, 3]), (2, [2, 3]), ([0, -1], [0, 3]), ((1,), [1])]
)
def test_indices_mean_what_timm_means(indices, taken):
    assert taken_blocks(4, indices) == taken


@pytest.mark.parametrize("indices", [5, [4], [-5], [], 0])
def test_indices_outside_are_refused(indices):
    with pytest.raises(ValueError, match="indices must name blocks of 4"):
        taken_blocks(4, indices)


def test_another_embedding_sets_its_own_grid():
    class Strided(timm.layers.PatchEmbed):
        def __init__(self, img_size, patch_size, **arguments):
            super().__init__(img_size=img_size, patch_size=2 * patch_size, **arguments)

    model = build(attention="linformer", embed_layer=Strided)
    assert model.blocks[0].attn.proj_k.shape[0] == 17
    assert model(images()).shape == (2, 5)


def test_the_readme_line_works():
    model = timm.create_model(
        "vit_s16", attention="hydra", reduction="tome", num_classes=10, img_size=384, device="meta"
    )
    assert isinstance(model, ComposableViT)
    assert model.token_counts == [569 - 8 * i for i in range(12)]
