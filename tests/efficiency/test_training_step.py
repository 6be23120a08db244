"""The step that is measured and estimated: its parts, its labels, and what it leaves."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from efficient_vits.efficiency.storages import INPUTS, OPTIMIZER, WEIGHTS, StorageTracker
from efficient_vits.efficiency.training_step import (
    Step,
    amp_dtype,
    chosen_optimizer,
    create_optimizer,
    loss_terms,
    set_checkpointing,
    track,
)


def step_of(model: nn.Module, size: tuple[int, ...], optimizer: str | None = "sgd") -> Step:
    made = create_optimizer(model, optimizer) if optimizer else None
    return Step(model, torch.ones(size), made, None)


@pytest.mark.parametrize(
    ("amp", "device", "dtype"),
    [
        (None, "cuda", None),
        (False, "cpu", None),
        (True, "cuda", torch.float16),
        (True, "cpu", torch.bfloat16),
        ("bfloat16", "cuda", torch.bfloat16),
    ],
)
def test_the_dtype_of_autocast(amp: Any, device: str, dtype: torch.dtype | None) -> None:
    assert amp_dtype(amp, device) is dtype


def test_lamb_unless_said_otherwise_and_only_in_training() -> None:
    assert chosen_optimizer(True, None, True) == "lamb"
    assert chosen_optimizer(True, "sgd", False) == "sgd"
    assert chosen_optimizer(False, None, False) is None
    with pytest.raises(ValueError, match="optimizer='sgd' needs training=True"):
        chosen_optimizer(False, "sgd", False)
    with pytest.raises(ValueError, match="grad_checkpointing=True needs training=True"):
        chosen_optimizer(False, None, True)


def test_a_training_step_changes_the_weights_and_releases_gradients() -> None:
    model = nn.Linear(3, 5)
    before = model.weight.detach().clone()
    step = step_of(model, (2, 3))
    step()
    assert not torch.equal(before, model.weight)
    assert model.weight.grad is None
    assert step.labels[0].tolist() == [0, 0]


def test_the_gradient_is_that_of_cross_entropy_and_announced_terms() -> None:
    class Announces(nn.Module):
        auxiliary_loss: Tensor | None = None

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor([2.0]))
            self.scores = nn.Parameter(torch.zeros(4))

        def forward(self, x: Tensor) -> Tensor:
            self.auxiliary_loss = self.scale.square().sum()
            return self.scores.expand(len(x), 4)

    model = Announces()
    step_of(model, (3, 1)).differentiate()
    assert [term.item() for term in loss_terms(model)] == [4.0]
    assert model.scale.grad is not None
    assert model.scores.grad is not None
    torch.testing.assert_close(model.scale.grad, torch.tensor([4.0]))
    torch.testing.assert_close(model.scores.grad, torch.tensor([-0.75, 0.25, 0.25, 0.25]))


def test_several_outputs_and_dense_ones_are_added_up() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2))

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            whole = self.weight.expand(len(x), 2)
            return {"whole": whole, "dense": whole[..., None, None].expand(len(x), 2, 3, 3)}

    model = Both()
    step = step_of(model, (4, 1))
    step.differentiate()
    assert [tuple(labels.shape) for labels in step.labels] == [(4,), (4, 3, 3)]
    assert model.weight.grad is not None
    torch.testing.assert_close(model.weight.grad, torch.tensor([-1.0, 1.0]))


def test_a_forward_pass_keeps_no_graph_and_no_state() -> None:
    model = nn.Linear(3, 5)
    step = step_of(model, (2, 3), None)
    step()
    assert model.weight.grad is None
    assert step.labels == []
    assert step.resident()[OPTIMIZER] == []


def test_what_is_resident_and_what_a_step_takes() -> None:
    model = nn.Linear(8, 4, bias=False)
    step = step_of(model, (2, 8))
    step()
    resident = {kind: sum(t.nbytes for t in ts) for kind, ts in step.resident().items()}
    weights = 8 * 4 * 4
    assert resident[WEIGHTS] == weights
    assert resident[INPUTS] == 2 * 8 * 4 + 2 * 8  # images, and a label of eight bytes each
    assert resident[OPTIMIZER] == weights  # momentum
    peak = track(step, StorageTracker())
    assert {kind: peak[kind] for kind in resident} == resident
    assert sum(peak.values()) >= sum(resident.values()) + weights  # and gradients


def test_models_without_checkpointing_are_refused() -> None:
    class Refuses(nn.Module):
        def set_grad_checkpointing(self, enable: bool) -> None:
            raise AssertionError("not here")

    with pytest.raises(ValueError, match="Linear has none"):
        set_checkpointing(nn.Linear(1, 1))
    with pytest.raises(ValueError, match="Refuses cannot checkpoint: not here"):
        set_checkpointing(Refuses())
