import pytest
import torch
from torch import Tensor, nn

from efficient_vits.efficiency.inputs import device_of, evaluating, placed, random_images


def test_every_modules_mode_comes_back_after_an_error() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout()))
    model[1].eval()

    def fail() -> None:
        with evaluating(model):
            assert not any(module.training for module in model.modules())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [module.training for module in model.modules()] == [True, True, False, False]


def test_caches_of_eval_mode_do_not_survive() -> None:
    class Cached(nn.Linear):
        cache: Tensor | None = None

        def train(self, mode: bool = True) -> "Cached":
            if mode:
                self.cache = None
            return super().train(mode)

    model = Cached(2, 2).eval()
    with evaluating(model), torch.inference_mode():
        model.cache = model.weight * 2
    assert model.cache is None
    assert not model.training


def test_a_model_on_meta_cannot_run() -> None:
    with (
        pytest.raises(ValueError, match="Linear is on the meta device"),
        placed(nn.Linear(2, 2, device="meta"), "cpu"),
    ):
        pass


def test_a_model_on_two_devices_is_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta"))
    with pytest.raises(ValueError, match="spread over cpu, meta"):
        device_of(model)


def test_images_fit_the_model_and_leave_the_random_state() -> None:
    model = nn.Linear(2, 2, dtype=torch.bfloat16)
    state = torch.get_rng_state()
    images = random_images(model, (3, 5, 4), 2, device=torch.device("cpu"))
    assert (tuple(images.shape), images.dtype) == ((2, 3, 5, 4), torch.bfloat16)
    assert torch.equal(images, random_images(model, (3, 5, 4), 2, device=torch.device("cpu")))
    assert torch.equal(torch.get_rng_state(), state)
