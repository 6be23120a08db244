"""Sums of storages against sizes that follow from the shapes."""

import pytest
import torch
from torch import nn

from efficient_vits.efficiency.storages import ACTIVATIONS, WEIGHTS, WORKSPACE, StorageTracker


def test_the_peak_is_what_was_alive_at_one_time() -> None:
    with StorageTracker() as tracker:
        first = torch.empty(100, dtype=torch.uint8)
        second = torch.empty(30, dtype=torch.uint8)
        del first
        third = torch.empty(50, dtype=torch.uint8)
    assert tracker.peak[ACTIVATIONS] == 130
    assert tracker.alive[ACTIVATIONS] == second.nbytes + third.nbytes


def test_views_share_their_storage_and_kinds_are_told_apart() -> None:
    weight = torch.empty(10, dtype=torch.uint8)
    tracker = StorageTracker()
    tracker.add([weight, weight[:5]], WEIGHTS)
    with tracker:
        view = weight.view(2, 5).t()
        copy = view.clone()
    assert tracker.alive == {**dict.fromkeys(tracker.alive, 0), WEIGHTS: 10, ACTIVATIONS: 10}
    tracker.add([copy], WEIGHTS)
    assert (tracker.alive[WEIGHTS], tracker.alive[ACTIVATIONS]) == (20, 0)


def test_what_autograd_saves_is_alive_until_the_backward_pass() -> None:
    x = torch.ones(100, requires_grad=True)
    with StorageTracker() as tracker:
        out = x.exp().sum()  # exp keeps its result
        assert tracker.alive[ACTIVATIONS] == 4 * 100 + 4
        out.backward()
        del out
        assert x.grad is not None
        assert tracker.alive[ACTIVATIONS] == x.grad.nbytes == 400


def test_blocks_and_workspace() -> None:
    def rule(operator: str, arguments: object, result: torch.Tensor) -> int:
        return 7 if operator == "aten.mm.default" else 0

    with StorageTracker(block=512, workspace=rule) as tracker:
        a = torch.ones(3, 3)
        b = a @ a
    assert tracker.peak[ACTIVATIONS] == 2 * 512
    assert tracker.peak[WORKSPACE] == 7
    tracker.reset_peak()
    assert tracker.peak[WORKSPACE] == 0
    assert b.shape == (3, 3)


@pytest.mark.parametrize("resized", [200, 20])
def test_storages_that_change_their_size(resized: int) -> None:
    with StorageTracker() as tracker:
        x = torch.empty(100, dtype=torch.uint8)
        x.untyped_storage().resize_(resized)
        x.add_(0) if resized > 100 else x.set_(x.untyped_storage(), 0, (resized,))
    assert tracker.alive[ACTIVATIONS] == resized
    del x
    assert tracker.alive[ACTIVATIONS] == 0


def test_tensors_on_meta_take_nothing() -> None:
    with StorageTracker() as tracker:
        nn.Linear(3, 4, device="meta")(torch.empty(2, 3, device="meta"))
    assert sum(tracker.peak.values()) == 0
