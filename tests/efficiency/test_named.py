"""Models by name, and the images that they were built for."""

import pytest
import timm
from torch import nn

import efficient_vits  # noqa: F401
from efficient_vits.efficiency.named import build, own_input_size


def test_a_name_is_built_on_meta_or_with_values() -> None:
    assert {p.device.type for p in build("vit_ti16", meta=True).parameters()} == {"meta"}
    assert {p.device.type for p in build("test_vit").parameters()} == {"cpu"}


def test_a_model_for_one_size_is_built_for_the_one_asked_for() -> None:
    model = build("vit_ti16", (3, 96, 160), meta=True)
    assert own_input_size(model) == (3, 96, 160)
    assert own_input_size(build("resnet18", (3, 96, 160), meta=True)) == (3, 224, 224)


@pytest.mark.parametrize(
    ("model", "size"),
    [
        (lambda: timm.create_model("test_vit"), (3, 160, 160)),
        (lambda: timm.create_model("test_vit", in_chans=1, img_size=64), (1, 64, 64)),
        (lambda: nn.Linear(3, 3), (3, 224, 224)),
    ],
)
def test_its_own_size(model, size: tuple[int, ...]) -> None:
    assert tuple(own_input_size(model())) == size


def test_an_unknown_name_has_near_ones() -> None:
    with pytest.raises(ValueError, match=r"timm knows no model 'vit_ti61'; near names: .*vit_ti16"):
        build("vit_ti61")
