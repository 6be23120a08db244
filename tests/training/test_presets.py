import pytest

from efficient_vits.results import table1, table2, table6
from efficient_vits.training import PRESETS, RecipeError, preset
from efficient_vits.training.presets import run_settings


def test_pretraining_is_that_of_table_1():
    printed = {row.parameter: row.pretrain for row in table1()}
    for name in ("pretrain", "pretrain-192"):
        assert PRESETS[name].epochs == float(printed["Epochs"])
        assert PRESETS[name].lr == float(printed["LR"])
    differing = {"name", "epochs", "lr"}
    pretrain, finetune = PRESETS["pretrain"].model_dump(), PRESETS["finetune"].model_dump()
    assert {key for key in pretrain if pretrain[key] != finetune[key]} == differing


@pytest.mark.parametrize("name", ["cars", "flowers", "places"])
def test_other_data_sets_are_those_of_table_2(name):
    recipe, names = PRESETS[name], ("epochs", "lr", "batch_size", "img_size")
    for row, setting in zip(table2(), names, strict=True):
        assert getattr(recipe, setting) == getattr(row, name)


def test_digits_differ_from_pretraining_in_what_small_images_need():
    digits, pretrain = PRESETS["digits"].model_dump(), PRESETS["pretrain"].model_dump()
    assert {key: value for key, value in digits.items() if value != pretrain[key]} == {
        "name": "digits",
        "img_size": 64,
        "batch_size": 64,
        "warmup_epochs": 1,
        "hflip": 0.0,
        "cutmix": 0.0,
        "three_augment": ("grayscale", "blur"),
    }


@pytest.mark.parametrize(
    ("name", "model", "changes"),
    [
        ("pretrain", "mixer_s16", {"lr": 2e-3, "optimizer_eps": 1e-6}),
        ("finetune", "mixer_s16", {}),
        ("pretrain", "dynamicvit_s16", {"lr": 1e-3, "optimizer_eps": 1e-6}),
        ("pretrain-192", "dynamicvit_s16", {"lr": 1e-3}),
        ("pretrain", "informer_s16", {"amp": False}),
        ("finetune", "informer_s16", {"amp": False}),
        ("finetune", "rest_s", {"amp": False}),
        ("finetune", "gfnet_s16", {}),  # the run at lr 0.003 is the worse one
        ("finetune", "vit_b16", {}),  # only the number of processes differs
        ("finetune", "somebody_elses_model", {}),
        ("digits", "informer_s16", {}),
    ],
)
def test_settings_of_single_models(name, model, changes):
    assert preset(name, model=model) == preset(name).with_changes(**changes)


def test_every_setting_of_table_6_is_understood():
    found = [run_settings(run, phase) for run in table6() for phase in ("pre-train", "fine-tune")]
    assert {name for settings in found for name in settings} == {"lr", "optimizer_eps", "amp"}


def test_an_unknown_preset_names_the_near_ones():
    with pytest.raises(RecipeError, match="near names: finetune"):
        preset("fine-tune")
