import itertools
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from efficient_vits.efficiency import Options, measure_training, timing, training_speed


class Model(nn.Linear):
    """Two classes; remembers its passes in a list that copies share."""

    def __init__(self, seen: list[Any]) -> None:
        super().__init__(4, 2)
        self.seen = seen

    def __deepcopy__(self, memo: dict[int, Any]) -> "Model":
        twin = Model(self.seen)
        twin.load_state_dict(self.state_dict())
        return twin

    def forward(self, x: Tensor) -> Any:
        out = super().forward(x)
        self.seen.append((self.training, torch.is_grad_enabled(), out.dtype, self.weight.clone()))
        return self.outputs(out)

    def outputs(self, out: Tensor) -> Any:
        return out


def quick(model: nn.Module, **arguments: Any) -> Any:
    return measure_training(model, (4,), **{"batch_size": 3, "min_seconds": 1e-6, **arguments})


def test_a_copy_is_trained_and_the_model_left_alone() -> None:
    seen: list[Any] = []
    model = Model(seen).eval()
    model.weight.grad = torch.ones_like(model.weight)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    with torch.inference_mode():  # a caller's own mode is no obstacle
        result = quick(model)
    assert {(training, grad) for training, grad, *_ in seen} == {(True, True)}
    weights = [weight for *_, weight in seen]
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(weights))
    assert len(seen) > result.repeats >= 5
    assert not model.training
    assert torch.equal(model.weight.grad, torch.ones_like(model.weight))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert (result.batch_size, result.optimizer, result.device) == (3, "lamb", "cpu")
    assert result.images_per_second == pytest.approx(3 / result.step_seconds)
    assert result.interval[0] <= result.images_per_second <= result.interval[1]
    assert result.prediction[0] <= result.images_per_second <= result.prediction[1]


def test_split_times_and_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds_of(device: torch.device, *parts: Callable[[], object]) -> tuple[float, ...]:
        for part in parts:
            part()
        return (1.0, 2.0, 0.5)

    monkeypatch.setattr(training_speed, "seconds_of", seconds_of)
    monkeypatch.setattr(timing.Watch, "flags", lambda *_: ())
    result = quick(Model([]), batch_size=7)
    assert (result.forward_seconds, result.backward_seconds, result.optimizer_seconds) == (
        1.0,
        2.0,
        0.5,
    )
    assert (result.step_seconds, result.images_per_second, result.repeats) == (3.5, 2.0, 5)
    assert result.hours_per_epoch == pytest.approx(1_281_167 / 2 / 3600)
    # A step of one image takes long already: no search beyond it.
    assert quick(Model([]), batch_size=None).batch_size == 1


def test_what_is_left_in_modules_and_other_outputs_are_part_of_the_loss() -> None:
    class Two(Model):
        def __deepcopy__(self, memo: dict[int, Any]) -> "Two":
            return Two(self.seen)

        def outputs(self, out: Tensor) -> Any:
            self.extra = nn.Parameter(torch.ones(())) if not hasattr(self, "extra") else self.extra
            self.auxiliary_loss = 3 * self.extra
            return out, out

    model = Two([])
    scores, choices = torch.tensor([[0.0, 0.0], [0.0, 0.0]]), torch.tensor([0.1, 0.9])
    loss = training_speed._loss(model, model.outputs(scores), choices)
    assert loss.item() == pytest.approx(2 * torch.log(torch.tensor(2.0)).item() + 3)
    loss.backward()
    assert model.extra.grad == 3
    assert quick(model).repeats >= 5


def test_terms_of_a_past_pass_do_not_stand_in_the_way_of_a_copy() -> None:
    class Terms(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            self.auxiliary_loss = out.mean()
            return out

    model = Terms(4, 2)
    model(torch.ones(1, 4))
    term = model.auxiliary_loss
    quick(model)
    assert model.auxiliary_loss is term


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        (Options(amp="bfloat16"), torch.bfloat16),
        (Options(amp="float16"), torch.float16),
        (Options(dtype="float64"), torch.float64),
    ],
)
def test_options(options: Options, dtype: torch.dtype) -> None:
    seen: list[Any] = []
    result = quick(Model(seen), options=options, optimizer="sgd")
    assert {row[2] for row in seen} == {dtype}
    weights = [row[3] for row in seen]
    assert not torch.equal(weights[0], weights[-1])
    assert (result.options.amp, result.optimizer) == (options.amp, "sgd")


def test_a_model_of_timm_with_dropout() -> None:
    model = timm.create_model("test_vit", num_classes=5, drop_path_rate=0.5)
    state = torch.get_rng_state()
    result = measure_training(model, (3, 160, 160), batch_size=1, min_seconds=1e-6)
    assert min(result.forward_seconds, result.backward_seconds, result.optimizer_seconds) > 0
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        (nn.Identity(), {}, "Identity has no parameters to train"),
        (nn.Linear(4, 2), {"optimizer": "none"}, "timm knows no optimizer 'none'"),
        (nn.Linear(4, 2), {"min_seconds": 0}, "min_seconds must be a positive number"),
        (nn.Linear(4, 2), {"batch_size": -1}, "batch_size must be a positive integer, got -1"),
        (nn.Linear(4, 2, device="meta"), {}, "meta device"),
        (
            nn.Sequential(nn.Linear(4, 2), nn.Unflatten(1, (1, 2))),
            {},
            r"outputs \(batch, classes\), the model returns shape \(3, 1, 2\)",
        ),
    ],
)
def test_what_cannot_be_trained(model: nn.Module, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quick(model, **arguments)
