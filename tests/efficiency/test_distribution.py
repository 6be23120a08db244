"""Models that skip work where an image allows it, here one of plain torch."""

import dataclasses
import json

import pytest
import torch
from torch import Tensor, nn

from efficient_vits.efficiency import FlopDistribution, count_flops, flop_distribution, measure


class Skips(nn.Module):
    """A layer for the pixels of an image that are not zero."""

    depends_on_image = True

    def __init__(self, dynamic: bool = True) -> None:
        super().__init__()
        self.dynamic = dynamic
        self.layer = nn.Linear(1, 10, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.flatten(1).unsqueeze(-1)
        if self.dynamic:
            shown = (pixels != 0).any(dim=0).squeeze(-1)
            return self.layer(pixels[:, shown]).sum(dim=1)
        return self.layer(pixels).sum(dim=1)


class Model(nn.Module):
    def __init__(self, dynamic: bool = True) -> None:
        super().__init__()
        self.inner = Skips(dynamic)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x)
        return y


class Tells(Model):
    def token_maps(self, images: Tensor) -> list[Tensor]:
        shown = images.flatten(1) != 0
        index = torch.arange(shown.shape[1]).expand_as(shown)
        return [torch.where(shown, index, -1), index.clamp(max=0)]


def images(*shown: int) -> Tensor:
    """Images (1, 4, 4) of so many pixels that are not zero."""
    return torch.stack([(torch.arange(16) < n).float().view(1, 4, 4) for n in shown])


def macs(model: nn.Module, batch: Tensor) -> int:
    return count_flops(model, images=batch).macs


def test_given_images_are_counted_and_random_ones_cost_the_most_that_can_be() -> None:
    model = Model()
    assert [macs(model, image) for image in images(16, 3, 1).split(1)] == [160, 30, 10]
    # In a batch the longest decides.
    assert macs(model, images(3, 1)) == 30
    assert model.inner.dynamic
    assert count_flops(model, (1, 4, 4)).macs == 160
    zeros = Model().to("meta")
    assert count_flops(zeros, (1, 4, 4)).macs == 160
    assert model.inner.dynamic, "the switch comes back"
    masked = Model(dynamic=False)
    assert [macs(masked, image) for image in images(16, 3).split(1)] == [160, 160]


def test_the_switch_comes_back_after_an_error() -> None:
    model = Model()
    with pytest.raises(RuntimeError, match="could not trace"):
        count_flops(nn.Sequential(model, nn.Linear(3, 3)), (1, 4, 4))
    assert model.inner.dynamic


def test_images_take_the_models_dtype() -> None:
    model = Model().double()
    assert macs(model, images(3)) == 30


def test_mean_and_spread_over_images() -> None:
    result = flop_distribution(Model(), images(16, 4, 4))
    per_image = [count_flops(Model(), images=image).total for image in images(16, 4, 4).split(1)]
    assert (result.flops.minimum, result.flops.maximum) == (per_image[1], per_image[0])
    assert result.flops.mean == pytest.approx(sum(per_image) / 3)
    assert result.flops.std == pytest.approx(torch.tensor(per_image).double().std(correction=0))
    assert result.masked == per_image[0]
    assert result.skipped == pytest.approx(1 - sum(per_image) / 3 / per_image[0])
    assert result.images == 3
    assert (result.tokens, result.tokens_per_block) == (None, None)
    assert result.uncounted == {}


def test_masked_computation_saves_nothing() -> None:
    result = flop_distribution(Model(dynamic=False), images(16, 4))
    assert result.flops.mean == result.masked
    assert result.flops.std == result.skipped == 0


def test_a_model_that_always_does_the_same() -> None:
    result = flop_distribution(nn.Linear(4, 3), torch.zeros(2, 4))
    assert result.flops.minimum == result.flops.maximum == result.masked
    assert flop_distribution(nn.Flatten(), torch.zeros(2, 4)).skipped == 0


def test_tokens_that_enter_each_block() -> None:
    result = flop_distribution(Tells(), images(4, 2))
    assert result.tokens is not None
    assert result.tokens_per_block is not None
    assert [block.mean for block in result.tokens] == [16, 3]
    assert [block.std for block in result.tokens] == [0, 1]
    assert result.tokens_per_block.mean == pytest.approx((10 + 9) / 2)


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        ([1, 2], TypeError, "images must be a tensor"),
        (torch.zeros(3), ValueError, "batch"),
        (torch.zeros(0, 1, 4, 4), ValueError, "batch"),
    ],
)
def test_what_are_no_images_is_refused(batch: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        flop_distribution(Model(), batch)
    with pytest.raises(error, match=message):
        count_flops(Model(), images=batch)


def test_without_values_nothing_can_be_decided() -> None:
    with pytest.raises(ValueError, match="meta device"):
        flop_distribution(Model().to("meta"), images(3))


def test_measure_reports_it() -> None:
    steps: list[str] = []
    result = measure(
        Tells(),
        input_size=(1, 4, 4),
        images=images(4, 2),
        memory=False,
        throughput=False,
        on_step=steps.append,
    )
    assert steps == ["flops", "distribution"]
    assert isinstance(result.distribution, FlopDistribution)
    assert result.flops.total == result.distribution.masked
    assert json.loads(json.dumps(result.to_dict()))["distribution"]["images"] == 2
    assert "FLOPs done" in str(result)
    assert "on 2 images, 8" in str(result)
    assert "tokens      9.5 ± 0.5 patch tokens per block" in str(result)
    assert "FLOPs done" not in str(dataclasses.replace(result, distribution=None))
