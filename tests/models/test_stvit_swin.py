"""Semantic tokens in Swin: windows, units, what became of the patches, other resolutions."""

import json
from pathlib import Path

import pytest
import timm
import torch
from torch.nn import functional as F

import efficient_vits
from efficient_vits.models._semantic_stage import (
    join_windows,
    split_windows,
    take_windows,
    window_places,
)

FILE = Path(__file__).parent / "small" / "stvit_swin.json"
SMALL = {"num_classes": 7, **json.loads(FILE.read_text())["arguments"]}


def small(**arguments):
    return timm.create_model("stvit_swin_ti_w7", **{**SMALL, **arguments}).eval()


@pytest.mark.parametrize(
    ("length", "window", "margin", "expected"),
    [
        (14, 7, 0, [(0, 7), (7, 14)]),
        (14, 7, 3, [(0, 10), (4, 14)]),
        (21, 7, 3, [(0, 10), (6, 16), (11, 21)]),
        (8, 3, 0, [(0, 3), (3, 6), (5, 8)]),
        (4, 4, 3, [(0, 4)]),
        (5, 4, 3, [(0, 5), (0, 5)]),
    ],
)
def test_windows_lie_inside_the_map(length, window, margin, expected):
    places = window_places(length, window, margin, torch.device("cpu"))
    assert places.tolist() == [list(range(a, b)) for a, b in expected]
    assert set(places.flatten().tolist()) == set(range(length)), "a place is in no window"


def test_at_14_by_14_keys_are_windows_of_10_at_a_stride_of_4():
    """What the paper's network takes at 224 pixels."""
    x = torch.randn(2, 14, 14, 3)
    unfolded = F.unfold(x.permute(0, 3, 1, 2), kernel_size=10, stride=4)
    expected = unfolded.reshape(2, 3, 100, 4).permute(0, 3, 2, 1).reshape(8, 10, 10, 3)
    assert torch.equal(take_windows(x, (7, 7), 3), expected)


def test_semantic_tokens_lie_row_by_row():
    x = torch.arange(2 * 2 * 3 * 9.0).reshape(2, 2 * 3 * 9, 1)
    windows = split_windows(x, 2, 3, 3)
    assert windows[1, :, 0].tolist() == [3, 4, 5, 12, 13, 14, 21, 22, 23]
    assert torch.equal(join_windows(windows, 2, 3, 3), x)


def test_patches_outside_a_window_reach_it_by_semantic_tokens():
    """Swin's layer keeps to windows; the unit after it does not."""
    unit = small().layers[2].blocks[0]
    x = torch.randn(1, 8, 8, 64, requires_grad=True)
    for layer, reaches in ((unit.base, False), (unit, True)):
        (gradient,) = torch.autograd.grad(layer(x)[0, 0, 0].sum(), x)
        assert bool(gradient[0, 4:, 4:].abs().max() > 0) is reaches


def test_says_which_semantic_token_a_patch_comes_back_from():
    model, x = small(depths=[1, 1, 12, 1]), torch.randn(2, 3, 64, 64)
    maps = model.token_maps(x)
    assert [m.shape for m in maps] == [(2, 64)] * 2
    for unit_map in maps:
        assert unit_map.min() >= 0
        assert unit_map.max() < 4 * 9
        assert unit_map.unique().numel() > 1
    # With the recovery's queries at zero but for one direction all patches choose alike.
    recover = model.layers[2].blocks[1].recover
    torch.nn.init.zeros_(recover.attn.q.weight)
    assert (model.token_maps(x)[1] == model.token_maps(x)[1][:, :1]).all()
    assert not (model.token_maps(x)[0] == model.token_maps(x)[0][:, :1]).all()


def test_another_resolution_resamples_centres_and_weights_load():
    model, wide = small(), small(img_size=128)
    assert model.layers[2].blocks[0].centres.shape == (1, 36, 64)
    assert wide.layers[2].blocks[0].centres.shape == (1, 144, 64)
    loaded = efficient_vits.load_weights(wide, model.state_dict())
    assert loaded.resampled == ["layers.2.blocks.0.centres"]
    model.set_input_size(img_size=128)
    x = torch.randn(1, 3, 128, 128)
    torch.testing.assert_close(model(x), wide(x))
    model.set_input_size(img_size=(64, 96))
    assert model(torch.randn(1, 3, 64, 96)).shape == (1, 7)


def test_intermediates_come_by_name():
    model, x = small(), torch.randn(1, 3, 64, 64)
    result = model.forward_intermediates(x, output_dict=True)
    assert [m.shape[1:] for m in result["image_intermediates"]] == [
        (16, 32, 32),
        (32, 16, 16),
        (64, 8, 8),
        (128, 4, 4),
    ]
    torch.testing.assert_close(result["image_features"], model.forward_features(x))
    only = model.forward_intermediates(x, [2], intermediates_only=True, output_dict=True)
    assert only.keys() == {"image_intermediates"}


@pytest.mark.parametrize("depths", [[1, 1, 5, 1], [1, 1, 0, 1], [1, 1]])
def test_the_third_stage_has_whole_units(depths):
    with pytest.raises(ValueError, match="third stage"):
        small(depths=depths)


def test_learned_centres_are_in_the_first_unit_and_do_not_decay():
    model = timm.create_model("stvit_swin_b_w7", device="meta")
    assert [unit.centres is not None for unit in model.layers[2].blocks] == [True, False, False]
    assert "layers.2.blocks.0.centres" in model.no_weight_decay()
    rates = [b.drop_path2.drop.drop_prob for s in (0, 1, 3) for b in model.layers[s].blocks[1:]]
    assert rates == pytest.approx([0.1 / 23, 0.3 / 23, 0.1])
