"""CPU figures against sizes that follow from the code of the model."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from efficient_vits.efficiency import measure_memory

KIB = 1024


class AtOnce(nn.Module):
    """Holds two tensors of 256 and 512 KiB at the same time."""

    def forward(self, x: Tensor) -> Tensor:
        first = torch.empty(256 * KIB, dtype=torch.uint8)
        second = torch.empty(512 * KIB, dtype=torch.uint8)
        del first, second
        return x


class OneAfterTheOther(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        for size in (256, 512):
            torch.empty(size * KIB, dtype=torch.uint8)
        return x


@pytest.mark.parametrize(("model", "kib"), [(AtOnce(), 768), (OneAfterTheOther(), 512)])
def test_the_peak_is_what_was_held_at_one_time(model: nn.Module, kib: int) -> None:
    use = measure_memory(model, (4,))
    assert use.activation_bytes == kib * KIB
    assert (use.weights_bytes, use.input_bytes) == (0, 16)
    assert use.peak_bytes == kib * KIB + 16
    assert (use.device, use.method) == ("cpu", "profiler events")


def test_activations_grow_with_the_batch_and_weights_do_not() -> None:
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64))
    # Alive at the peak: the input and the output of the ReLU, each (batch, 256) float32.
    one, four = (measure_memory(model, (64,), batch_size=n) for n in (1, 4))
    assert one.activation_bytes == 2 * 256 * 4
    assert four.activation_bytes == 4 * one.activation_bytes
    assert four.input_bytes == 4 * one.input_bytes == 4 * 64 * 4
    assert four.weights_bytes == one.weights_bytes == 4 * (2 * 64 * 256 + 256 + 64)


def test_buffers_are_weights_and_shared_ones_count_once() -> None:
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    model[1].weight = model[0].weight
    model.register_buffer("table", torch.zeros(3, dtype=torch.int64))
    assert measure_memory(model, (8,)).weights_bytes == 8 * 8 * 4 + 3 * 8


def test_what_is_kept_from_the_first_call_on_is_no_activation() -> None:
    class Lazy(nn.Module):
        table: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            if self.table is None:
                self.table = torch.zeros(KIB)
            return x

    assert measure_memory(Lazy(), (4,)).activation_bytes == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"optimizer": "sgd"}, "optimizer='sgd' needs training=True"),
        ({"grad_checkpointing": True}, "grad_checkpointing=True needs training=True"),
        ({"training": True, "optimizer": "lamp"}, "got 'lamp'"),
        ({"batch_size": ()}, "or several; got none"),
        ({"amp": "int8"}, "got 'int8'"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure_memory(nn.Linear(4, 4), (4,), **arguments)


def test_another_kind_of_device_is_refused() -> None:
    with pytest.raises(ValueError, match="'cpu' and 'cuda' devices, got 'meta'"):
        measure_memory(nn.Identity(), (4,), device="meta")
