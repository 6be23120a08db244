import copy

import pytest
import timm
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from efficient_vits.efficiency import compare_counters, count_flops
from efficient_vits.efficiency.counters import UNEXPLAINED


@pytest.mark.parametrize("backward", [False, True])
def test_fused_attention_is_the_difference(backward: bool) -> None:
    model = timm.create_model("vit_tiny_patch16_224", depth=2, img_size=64)
    result = compare_counters(model, (3, 64, 64), backward=backward)
    assert result.ours == count_flops(model, (3, 64, 64), backward=backward)
    attention = {r.operators: r for r in result.rows if "attention" in r.operators}
    products = 2 * 2 * 17 * 17 * 192
    assert {name: (r.ours, r.torchs) for name, r in attention.items()} == {
        "aten._scaled_dot_product_flash_attention_for_cpu": (products, 0),
        **(
            {"aten._scaled_dot_product_flash_attention_for_cpu_backward": (2 * products, 0)}
            if backward
            else {}
        ),
    }
    assert all("no formula" in r.reason for r in attention.values())
    assert result.unexplained == 0
    assert sum(r.ours for r in result.rows) == result.ours.macs
    assert sum(r.torchs for r in result.rows) == result.torchs
    assert f"{result.torchs:,}" in str(result)
    with sdpa_kernel(SDPBackend.MATH):
        plain = compare_counters(model, (3, 64, 64), backward=backward)
    assert plain.torchs == plain.ours.macs
    assert {r.reason for r in plain.rows} == {""}


def test_convolutions_in_groups_are_counted_too_often_on_the_way_back() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.Conv2d(6, 12, 3, groups=3), nn.ConvTranspose2d(12, 4, 2, groups=2)
    )
    result = compare_counters(model, (3, 8, 8), batch_size=2, training=True, backward=True)
    assert result.unexplained == 0
    grouped = result.rows[-1]
    once = [6 * 6 * 12 * 2 * 9, 6 * 6 * 12 * 2 * 4]
    assert (grouped.ours, grouped.torchs) == (0, 2 * once[0] + once[1])
    assert "by the groups" in grouped.reason


def test_matrix_times_vector_is_unknown_to_torch() -> None:
    class Vector(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.mv(x[0], x[0, 0])

    (row,) = compare_counters(Vector(), (4, 4)).rows
    assert (row.operators, row.ours, row.torchs) == ("aten.mv", 16, 0)


def test_what_no_output_needs_is_not_explained_away() -> None:
    class Wasteful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.layer(x)
            return x * 2

    result = compare_counters(Wasteful(), (4,))
    assert result.unexplained == -16
    assert [row.reason for row in result.rows] == [UNEXPLAINED]


def test_a_model_on_meta_and_one_left_as_it_was() -> None:
    with torch.device("meta"):
        meta = timm.create_model("resnet26")
    assert compare_counters(meta, (3, 64, 64)).unexplained == 0
    model = timm.create_model("resnet26")
    before = copy.deepcopy(model.state_dict())
    compare_counters(model, (3, 64, 64), batch_size=2, training=True, backward=True)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
