"""HaloNet: the numbers of its paper, and what its blocks do."""

import pytest
import timm
import torch
from timm.models.byobnet import ByobNet

SMALL = {"depths": (1, 1, 1, 1), "width": 16, "block_size": 4, "halo_size": 1, "num_classes": 7}


@pytest.mark.parametrize(
    ("size", "millions"),
    [
        ("h0", 5.5),
        ("h2", 9.4),
        ("h3", 11.8),
        ("h4", 19.1),
        ("h5", 30.7),
        ("h6", 43.4),
        ("h7", 67.4),
    ],
)
def test_has_as_many_parameters_as_the_paper_says(size, millions):
    model = timm.create_model(f"halonet_{size}", device="meta")
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


def test_the_shell_is_timms_and_h1_is_left_to_it():
    assert isinstance(timm.create_model("halonet_h0", device="meta"), ByobNet)
    h1 = {"output_ratio": 1.0, "depths": (3, 3, 10, 3), "device": "meta"}
    ours, theirs = (
        {n: v.shape for n, v in timm.create_model(name, **arguments).state_dict().items()}
        for name, arguments in (("halonet_h0", h1), ("halonet_h1", {"device": "meta"}))
    )
    attention = "self_attn."
    assert {n: s for n, s in ours.items() if attention not in n} == {
        n: s for n, s in theirs.items() if attention not in n
    }
    assert "halonet_h1" not in timm.list_models(module="efficient_vits")


def test_blocks_begin_as_the_identity_unless_told_otherwise():
    x = torch.rand(1, 16, 9, 11)
    for zero_init_last in (True, False):
        model = timm.create_model("halonet_h0", **SMALL, zero_init_last=zero_init_last).eval()
        block = model.stages[0][0]
        block.shortcut = torch.nn.Identity()
        block.conv3_1x1 = block.conv3_1x1.eval()
        narrow = block.conv3_1x1(block.post_attn(block.self_attn(block.conv1_1x1(x))))
        assert bool(narrow.abs().max() == 0) is zero_init_last


def test_a_pixel_reaches_as_far_as_its_window():
    """Whatever changes in one corner, the first stage of the other one does not see it."""
    model = timm.create_model("halonet_h0", **SMALL, zero_init_last=False).eval()
    x = torch.randn(1, 16, 19, 22)
    changed = x.clone()
    changed[..., -1, -1] += 1
    seen = (model.stages[0](changed) - model.stages[0](x)).abs().amax(dim=(0, 1)) > 0
    # Blocks begin at multiples of 4. The last pixel lies in the blocks from (16, 20) on; a halo of
    # 1 reaches no other block from there.
    assert seen[16:, 20:].all()
    assert not seen[:16].any()
    assert not seen[:, :20].any()


def test_what_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="block_size"):
        timm.create_model("halonet_h0", **{**SMALL, "block_size": 5})
    with pytest.raises(ValueError, match="num_heads"):
        timm.create_model("halonet_h0", **{**SMALL, "width": 6})


def test_draws_all_weights_and_statistics_anew():
    model = timm.create_model("halonet_h0", **SMALL, zero_init_last=False)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.fill_(7)
    model.init_weights()
    for name, tensor in model.state_dict().items():
        assert not (tensor == 7).any(), name


def test_intermediates_come_by_name():
    model = timm.create_model("halonet_h0", **SMALL).eval()
    x = torch.randn(1, 3, 70, 90)
    final, maps = model.forward_intermediates(x)
    result = model.forward_intermediates(x, output_dict=True)
    assert torch.equal(result["image_features"], final)
    assert len(result["image_intermediates"]) == len(maps) == len(model.feature_info)
    only = model.forward_intermediates(x, output_dict=True, intermediates_only=True)
    assert list(only) == ["image_intermediates"]
