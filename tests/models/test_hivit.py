"""HiViT: its sizes, its stages against plain attention and MLPs, and the authors' names."""

import json
from pathlib import Path

import pytest
import timm
import torch
from einops import rearrange

import efficient_vits
from efficient_vits.models._hivit_stages import resample_bias
from efficient_vits.weights import WeightsError

REFERENCE = Path(__file__).parents[1] / "reference" / "hivit_ti16.json"
SMALL = {"img_size": 64, "embed_dim": 16, "depths": (1, 1, 2), "num_heads": 2, "num_classes": 7}


def build(**arguments):
    torch.manual_seed(0)
    return timm.create_model("hivit_ti16", **{**SMALL, **arguments}).eval()


@pytest.mark.parametrize(
    ("name", "millions"),
    [("hivit_t16_384d", 19.2), ("hivit_s16", 37.5), ("hivit_b16", 66.4)],
)
def test_has_as_many_parameters_as_the_paper_says(name, millions):
    model = timm.create_model(name, device="meta")
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


def naive(model, image):
    """One 16 x 16 patch after another up to the ViT, then a sum over all pairs of tokens."""
    patches = rearrange(image, "c (h p) (w q) -> (h w) c p q", p=16, q=16)
    first, second, vit = model.stages

    def mlps(stage, x):
        for block in stage.blocks:
            x = x + block.mlp(block.norm(x))
        return x

    def merged(merger, x):
        """Four neighbours of a square of patches: down the columns, then across."""
        x = rearrange(x, "n (h i) (w j) c -> n h w (j i c)", i=2, j=2)
        return merger.reduction(merger.norm(x))

    x = torch.nn.functional.conv2d(
        patches, model.patch_embed.proj.weight, model.patch_embed.proj.bias, stride=4
    )
    x = mlps(first, model.patch_embed.norm(rearrange(x, "n c h w -> n h w c")))
    x = mlps(second, merged(second.downsample, x))
    x = merged(vit.downsample, x)[:, 0, 0] + vit.pos_embed[0]
    H, W = vit.grid_size
    place = [(i // W, i % W) for i in range(H * W)]
    for block in vit.blocks:
        q, k, v = rearrange(block.attn.qkv(block.norm1(x)), "n (s h d) -> s h n d", s=3, h=2)
        table = block.attn.rel_pos.relative_position_bias_table
        bias = torch.stack(
            [
                torch.stack(
                    [table[(a - c + H - 1) * (2 * W - 1) + b - d + W - 1] for c, d in place]
                )
                for a, b in place
            ]
        )
        weights = (q @ k.mT / q.shape[-1] ** 0.5 + bias.permute(2, 0, 1)).softmax(-1)
        x = x + block.attn.proj(rearrange(weights @ v, "h n d -> n (h d)"))
        x = x + block.mlp(block.norm2(x))
    return model.head(model.fc_norm(x.mean(dim=0)))


def drawn(model):
    """With positions that matter."""
    with torch.no_grad():
        for name in model.no_weight_decay():
            model.get_parameter(name).normal_()
    return model.double()


def test_equals_its_naive_twin():
    model = drawn(build(img_size=(48, 64)))
    x = torch.randn(2, 3, 48, 64, dtype=torch.float64)
    expected = torch.stack([naive(model, image) for image in x])
    torch.testing.assert_close(model(x), expected)
    model.stages[2].blocks[1].attn.rel_pos.relative_position_bias_table.data[3] += 0.1
    assert not torch.allclose(model(x), expected)


def authors_state(model):
    """The state of `model` under the names of the authors' code."""
    ours = model.state_dict()
    theirs, position = {}, 0
    for s, stage in enumerate(model.stages):
        if s:
            for name in ("norm.weight", "norm.bias", "reduction.weight"):
                theirs[f"blocks.{position}.{name}"] = ours.pop(f"stages.{s}.downsample.{name}")
            position += 1
        for b, block in enumerate(stage.blocks):
            for name in block.state_dict():
                value = ours.pop(f"stages.{s}.blocks.{b}.{name}")
                name = name.replace("rel_pos.", "") if s == 2 else name.replace("norm.", "norm2.")
                theirs[f"blocks.{position}.{name}"] = value
            if s == 2:
                index = block.attn.rel_pos.relative_position_index
                theirs[f"blocks.{position}.attn.relative_position_index"] = index
            position += 1
    theirs["absolute_pos_embed"] = ours.pop("stages.2.pos_embed")
    return {**theirs, **ours}


def test_loads_the_authors_names():
    model, other = drawn(build()), build().double()
    loaded = efficient_vits.load_weights(other, authors_state(model))
    assert loaded.layout == "benchmark reference"
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    assert torch.equal(other(x), model(x))
    broken = authors_state(model)
    broken["blocks.99.norm1.weight"] = torch.ones(16)
    with pytest.raises(WeightsError, match="unexpected"):
        efficient_vits.load_weights(other, broken)


def test_the_benchmarks_names_are_the_authors():
    shapes = {n: tuple(s) for n, s, _ in json.loads(REFERENCE.read_text())["state"]}
    with torch.device("meta"):
        ours = authors_state(timm.create_model("hivit_ti16"))
    ours["pos_embed"] = ours.pop("absolute_pos_embed")
    index = "relative_position_index"
    assert {n: s for n, s in shapes.items() if not n.endswith(index)} == {
        n: tuple(v.shape) for n, v in ours.items() if not n.endswith(index)
    }


def test_weights_of_another_resolution_load():
    wide, narrow = build(img_size=(64, 96)), build()
    loaded = efficient_vits.load_weights(wide, narrow.state_dict())
    assert sorted(loaded.resampled) == sorted(narrow.no_weight_decay())
    narrow.set_input_size((64, 96))
    x = torch.randn(1, 3, 64, 96)
    torch.testing.assert_close(wide(x), narrow(x))


def test_resampled_biases_keep_their_directions():
    """A bias that grows with the row displacement does so on another grid, and 0 stays 0."""
    rows = torch.linspace(-1, 1, 7).view(7, 1, 1).expand(7, 5, 2)
    wide = resample_bias(rows.reshape(35, 2), (4, 3), (6, 3)).reshape(11, 5, 2)
    assert (wide.diff(dim=0) > 0).all()
    torch.testing.assert_close(wide[5], torch.zeros(5, 2), atol=1e-6, rtol=0)
    torch.testing.assert_close(wide[:, :1].expand(11, 5, 2), wide)


def test_a_frozen_model_stays_frozen_at_another_size():
    model = build().requires_grad_(False)
    model.set_input_size(96)
    assert not any(p.requires_grad for p in model.parameters())
    assert model(torch.randn(1, 3, 96, 96)).shape == (1, 7)


def test_what_does_not_fit_is_refused():
    for arguments, match in (
        ({"img_size": 72}, "divisible"),
        ({"patch_size": 6}, "divisible by 4"),
        ({"embed_dim": 18}, "divisible by 4"),
        ({"depths": (1, 2)}, "three depths"),
        ({"global_pool": "token"}, "token"),
    ):
        with pytest.raises(ValueError, match=match):
            build(**arguments)
    with pytest.raises(ValueError, match="NCHW"):
        build().forward_intermediates(torch.zeros(1, 3, 64, 64), output_fmt="NLC")


def test_intermediates_come_in_timms_other_forms():
    model, x = build(), torch.randn(2, 3, 64, 64)
    result = model.forward_intermediates(x, norm=True, output_fmt="NHWC", output_dict=True)
    final = model.forward_features(x)
    assert torch.equal(result["image_features"], final)
    assert torch.equal(result["image_intermediates"][-1], model.fc_norm(final))
    assert [m.shape[1] for m in result["image_intermediates"]] == [16, 8, 4]


def test_drop_path_counts_every_mlp():
    """As in the authors' code: a block of the first two stages is two MLPs."""
    model = build(drop_path_rate=0.5)
    rates = [
        getattr(block, "drop_path", getattr(block, "drop_path1", None))
        for stage in model.stages
        for block in stage.blocks
    ]
    rates = [getattr(rate, "drop_prob", 0.0) for rate in rates]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
