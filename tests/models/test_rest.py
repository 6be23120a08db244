"""ResT: the published sizes, the position encoding, images of odd sizes."""

import pytest
import timm
import torch
import torch.nn.functional as F

import efficient_vits
from efficient_vits.models.rest import PixelAttention

SMALL = {
    "depths": (1, 1, 2, 1),
    "embed_dims": (8, 16, 16, 16),
    "num_heads": (1, 2, 4, 8),
    "num_classes": 7,
}


def build(**arguments):
    return timm.create_model("rest_s", **{**SMALL, **arguments}).eval()


@pytest.mark.parametrize(
    ("name", "millions"),
    [("rest_lite", 10.49), ("rest_s", 13.66), ("rest_b", 30.28), ("rest_l", 51.63)],
)
def test_sizes_are_those_of_the_paper(name, millions):
    """Table 2."""
    model = timm.create_model(name, device="meta")
    count = sum(p.numel() for p in model.parameters()) / 1e6
    assert count == pytest.approx(millions, rel=5e-3)
    assert efficient_vits.model_card(name).paper.arxiv == "2105.13677"


def test_the_position_encoding_gates_by_a_neighbourhood():
    gate = PixelAttention(3).double()
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    around = F.pad(x, [1, 1, 1, 1])
    y = torch.empty_like(x)
    for i in range(4):
        for j in range(5):
            window = around[:, :, i : i + 3, j : j + 3]
            seen = (window * gate.conv.weight[:, 0]).sum(dim=(2, 3)) + gate.conv.bias
            y[:, :, i, j] = x[:, :, i, j] / (1 + (-seen).exp())
    torch.testing.assert_close(gate(x), y)


def test_maps_of_odd_sizes_are_not_cut_short():
    """The last column of the image is seen."""
    model, x = build().double(), torch.randn(1, 3, 70, 50, dtype=torch.float64)
    maps = model.forward_intermediates(x, intermediates_only=True)
    assert [m.shape[2:] for m in maps] == [(18, 13), (9, 7), (5, 4), (3, 2)]
    changed = x.clone()
    changed[..., -1] += 1
    assert not torch.equal(model(changed), model(x))


def test_levels_have_fewer_keys_the_finer_they_are():
    model, seen = build(), []
    for stage in model.stages:
        stage.blocks[0].attn.kv.register_forward_hook(
            lambda module, args, output: seen.append(output.shape[1])
        )
    model(torch.randn(1, 3, 96, 64))
    assert seen == [3 * 2] * 4
    assert [stage.blocks[0].attn.interaction is not None for stage in model.stages] == [
        False,
        True,
        True,
        True,
    ]


def test_stochastic_depth_grows_over_all_blocks():
    model = build(drop_path_rate=0.4)
    rates = [getattr(b.drop_path1, "drop_prob", 0.0) for s in model.stages for b in s.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
