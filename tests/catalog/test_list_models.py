"""Each filter against a few names chosen by hand; names of models to come may join them."""

import re

import pytest
import timm

import efficient_vits


def assert_has(found, among, wanted):
    """Of the names in `among`, exactly `wanted` were found, each once."""
    assert len(set(found)) == len(found)
    assert {name for name in found if name in among} == set(wanted)


SAMPLE = {
    "vit_ti16",  # baseline, 2020
    "deit_s16",  # baseline, 2022
    "resnet50",  # baseline, 2015, timm's
    "hydra_s16",  # token mixing, kernel, 2022
    "hydra_l16",  # without a row of its own
    "linformer_s16",  # token mixing, low rank, 2020
    "tome_s16_r8",  # token sequence, merging, 2022
    "switch8_s16",  # MLP, 2021
    "coat_tiny",  # token mixing, hybrid, 2021, timm's
}


@pytest.mark.parametrize(
    ("filters", "wanted"),
    [
        ({}, SAMPLE),
        ({"pattern": "hydra_*"}, {"hydra_s16", "hydra_l16"}),
        ({"pattern": "*_s16"}, {"deit_s16", "hydra_s16", "linformer_s16", "switch8_s16"}),
        ({"axis": "baseline"}, {"vit_ti16", "deit_s16", "resnet50"}),
        ({"axis": "token mixing"}, {"hydra_s16", "hydra_l16", "linformer_s16", "coat_tiny"}),
        ({"axis": "token sequence"}, {"tome_s16_r8"}),
        ({"axis": "MLP block"}, {"switch8_s16"}),
        ({"taxonomy": "kernel"}, {"hydra_s16", "hydra_l16"}),
        ({"taxonomy": "ATTENTION"}, {"hydra_s16", "hydra_l16", "linformer_s16", "coat_tiny"}),
        ({"taxonomy": "Token Merging"}, {"tome_s16_r8"}),
        ({"year": 2021}, {"switch8_s16", "coat_tiny"}),
        ({"year": (2015, 2020)}, {"resnet50", "vit_ti16", "linformer_s16"}),
        (
            {"year": (2022, 2022)},
            {"deit_s16", "hydra_s16", "hydra_l16", "tome_s16_r8"},
        ),
        ({"max_params": 5721832}, {"vit_ti16", "coat_tiny"}),
        ({"max_params": 5721831}, {"coat_tiny"}),
        (
            {"max_params": 23000000},
            SAMPLE - {"resnet50", "hydra_l16", "linformer_s16", "switch8_s16"},
        ),
        ({"built_on": "timm"}, {"resnet50", "coat_tiny"}),
        ({"built_on": "efficient_vits"}, SAMPLE - {"resnet50", "coat_tiny"}),
        ({"pattern": "*_s16*", "year": 2022, "taxonomy": "token"}, {"tome_s16_r8"}),
        ({"pattern": "no_such_*"}, set()),
    ],
    ids=str,
)
def test_filters(filters, wanted):
    assert_has(efficient_vits.list_models(**filters), SAMPLE, wanted)


def test_names_are_sorted_by_their_numbers():
    names = efficient_vits.list_models("tome_s16_*") + efficient_vits.list_models("vit_*16")
    assert [n for n in names if n in SAMPLE | {"tome_s16_r13", "vit_b16", "vit_s16"}] == [
        "tome_s16_r8",
        "tome_s16_r13",
        "vit_b16",
        "vit_s16",
        "vit_ti16",
    ]


def test_only_models_that_can_be_built_are_listed():
    assert all(timm.is_model(name) for name in efficient_vits.list_models())


@pytest.mark.parametrize(
    ("filters", "accepted"),
    [
        ({"axis": "attention"}, ["baseline", "token mixing", "token sequence", "MLP block"]),
        ({"axis": ""}, ["baseline"]),
        ({"taxonomy": "convolution"}, ["Kernel Attention", "Token Merging", "Baseline"]),
        ({"built_on": "torchvision"}, ["efficient_vits", "timm"]),
        ({"year": 1066}, ["2015", "2022"]),
        ({"year": "2022"}, ["2015", "2022"]),
    ],
    ids=str,
)
def test_a_value_that_no_model_has_is_refused_with_those_that_are_accepted(filters, accepted):
    with pytest.raises(ValueError, match=re.escape(repr(*filters.values()))) as error:
        efficient_vits.list_models(**filters)
    for value in accepted:
        assert value in str(error.value)


def test_an_unknown_filter_is_refused():
    with pytest.raises(TypeError, match="licence"):
        efficient_vits.list_models(licence="MIT")


def test_a_list_is_the_callers():
    efficient_vits.list_models().clear()
    assert "vit_s16" in efficient_vits.list_models()
