import pytest
from hypothesis import given
from hypothesis import strategies as st

from efficient_vits.results import table1
from efficient_vits.training import PRESETS, Recipe, RecipeError


def test_defaults_are_the_fine_tuning_of_table_1():
    printed = {row.parameter: row.finetune for row in table1()}
    recipe = Recipe()
    for parameter, name in {
        "Epochs": "epochs",
        "LR": "lr",
        "Min LR": "min_lr",
        "Batch Size": "batch_size",
        "Warmup Epochs": "warmup_epochs",
        "Warmup LR": "warmup_lr",
        "Weight decay": "weight_decay",
        "Grad Clipping": "clip_grad",
        "Label Smoothing": "label_smoothing",
        "Drop Path Rate": "drop_path_rate",
        "Optimizer eps": "optimizer_eps",
        "LayerScale Init": "layer_scale",
        "Dropout prob.": "drop_rate",
        "Flip prob.": "hflip",
        "Color Jitter Fact.": "color_jitter",
        "Cutmix prob.": "cutmix",
    }.items():
        assert getattr(recipe, name) == float(printed[parameter]), parameter
    assert recipe.optimizer == printed["Optimizer"].lower()
    assert str(recipe.mean) in printed["Normalization"]
    assert str(recipe.std) in printed["Normalization"]


@pytest.mark.parametrize("name", PRESETS)
def test_yaml_gives_the_same_recipe_back(name, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(PRESETS[name].to_yaml())
    assert Recipe.from_yaml(file) == PRESETS[name]


@given(st.floats(1e-4, 1e-1), st.integers(6, 400), st.sampled_from([None, 0.5, 1.0]))
def test_yaml_keeps_every_digit(lr, epochs, clip_grad):
    recipe = Recipe(lr=lr, epochs=epochs, clip_grad=clip_grad)
    import yaml

    assert Recipe(**yaml.safe_load(recipe.to_yaml())) == recipe


def test_yaml_reads_exponents_without_a_dot(tmp_path):
    (tmp_path / "recipe.yaml").write_text("lr: 3e-3\n")
    assert Recipe.from_yaml(tmp_path / "recipe.yaml").lr == 0.003


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"lerning_rate": 1}, "no setting 'lerning_rate'"),
        ({"epoch": 3}, "near names: epochs"),
        ({"lr": -1}, "lr is -1, accepted: greater than 0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"warmup_epochs": 50}, "fewer than epochs 50"),
        ({"optimizer": "lam"}, "near names: lamb"),
        ({"crop": "centre"}, "'simple' or 'resized'"),
        ({"batch_size": 3}, "must be even, got 3"),
        ({"min_lr": 1.0}, "min_lr 1 is above lr 0.0003"),
        ({"teacher": "vit_s16"}, "need each other"),
        ({"std": (1.0, 0.0, 1.0)}, "std must be positive"),
        ({"three_augment": ("sepia",)}, "'grayscale', 'solarize' or 'blur'"),
    ],
)
def test_what_is_not_accepted_is_said_in_one_line(values, said):
    with pytest.raises(RecipeError) as error:
        Recipe(**values)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(RecipeError):
        Recipe().with_changes(**values)


@pytest.mark.parametrize("text", ["- 1\n", "lr: [", "1: 2\n", ""])
def test_files_that_are_no_recipe(text, tmp_path):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(RecipeError, match=r"recipe\.yaml is no"):
        Recipe.from_yaml(tmp_path / "recipe.yaml")


def test_a_recipe_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        Recipe().lr = 1.0
