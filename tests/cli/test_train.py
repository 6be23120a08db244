import json

import pytest
from safetensors.torch import load_file

SMALL = (
    "--data",
    "digits",
    "--cpu",
    "--workers",
    "0",
    "--set",
    "epochs=2",
    "--set",
    "batch_size=448",
)
TINY = ("--arg", "depth=1", "--arg", "embed_dim=32", "--arg", "num_heads=2")


def test_train_evaluate_and_finetune(run, run_json, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = run("train", "hydra_ti16", *SMALL, *TINY, "--set", "img_size=16")
    assert status == 0
    assert "hydra_ti16: top-1" in out
    assert "epoch 2/2" in err
    folder = tmp_path / "runs" / "hydra_ti16-digits-0"
    result = json.loads((folder / "result.json").read_text())
    assert result["recipe"]["epochs"] == 2
    assert result["arguments"] == {"depth": 1, "embed_dim": 32, "num_heads": 2}

    accuracy = run_json("evaluate", folder, "--data", "digits", "--cpu", "--workers", "0")
    assert accuracy["top1"] == pytest.approx(result["top1"])
    assert accuracy["images"] == 450

    status, out, _ = run("finetune", folder, *SMALL, "--preset", "digits", "--set", "img_size=32",
                         "-o", "larger")  # fmt: skip
    assert status == 0
    larger = load_file(tmp_path / "larger" / "best" / "model.safetensors")
    assert larger["pos_embed"].shape[1] == 4
    [step] = json.loads((tmp_path / "larger" / "result.json").read_text())["lineage"]
    assert step["recipe"]["name"] == "digits"


def test_a_run_goes_on_only_when_asked_to(run, tmp_path):
    folder = tmp_path / "run"
    command = ("train", "vit_ti16", *SMALL, *TINY, "--set", "img_size=16", "-o", folder)
    assert run(*command)[0] == 0
    before = (folder / "last" / "model.safetensors").read_bytes()
    status, _, err = run(*command)
    assert status == 2
    assert "resume it, or choose another folder" in err
    assert run(*command, "--resume")[0] == 0
    assert (folder / "last" / "model.safetensors").read_bytes() == before


def test_how_a_run_is_carried_out(run, tmp_path, monkeypatch):
    import efficient_vits.training

    seen = []

    def train(start, data, recipe, output, *, options, **rest):
        seen.append(options)
        raise FileExistsError("seen")

    assert run("train", "vit_ti16", *SMALL, *TINY, "--set", "img_size=16", "-o", tmp_path)[0] == 0
    monkeypatch.setattr(efficient_vits.training, "train", train)
    given = ("--fsdp", "--micro-batch", "7", "--workers", "0", "--keep-every", "3", "--save-every",
             "5", "--tensorboard")  # fmt: skip
    run("train", "vit_ti16", *SMALL, *given)
    run("finetune", tmp_path, *SMALL, "--preset", "digits", *given)
    options = efficient_vits.training.Options(7, 0, 3, 5, True, True)
    assert seen == [options, options]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("train", "vit_ti17", "--data", "digits"), "no model 'vit_ti17'"),
        (("train", "vit_ti16", "--data", "nowhere"), "no data at 'nowhere'"),
        (("train", "vit_ti16", "--data", "digits", "--set", "epoch=3"), "near names: epochs"),
        (
            ("train", "vit_ti16", "--data", "digits", "--set", "epochs"),
            "--set 'epochs' is no KEY=VALUE",
        ),
        (("train", "vit_ti16", "--data", "digits", "--preset", "digit"), "near names: digits"),
        (("train", "vit_ti16", "--data", "digits", "--recipe", "no.yaml"), "--recipe no.yaml: No"),
        (
            ("train", "vit_ti16", "--data", "digits", "--preset", "digits", "--recipe", "no.yaml"),
            "exclude each other",
        ),
        (
            ("train", "vit_ti16", "--data", "digits", "--cpu", "--set", "batch_size=2000"),
            "fewer images than one update, 2000",
        ),
        (
            ("train", "vit_ti16", "--data", "digits", "--cpu", "--arg", "dept=2"),
            "vit_ti16 can't be built with {'dept': 2}, 64 px",
        ),
        (
            (
                "train",
                "vit_ti16",
                "--data",
                "digits",
                "--cpu",
                "--set",
                "cutmix=1.0",
                "--micro-batch",
                "1",
            ),
            "at least 2 images, got 1",
        ),
        (("finetune", "nowhere", "--data", "digits"), "no checkpoint at nowhere"),
        (("evaluate", "vit_ti16", "--data", "digits", "--img-size", "32x64"), "is not square"),
        (("evaluate", "nowhere", "--data", "digits"), "neither a checkpoint nor a model's name"),
    ],
)
def test_mistakes_are_one_line(command, said, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = run(*command)
    assert (status, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_without_the_extra_it_says_what_to_install(run, monkeypatch):
    import sys

    for name in [name for name in sys.modules if name.startswith("efficient_vits.training")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "accelerate", None)
    status, _, err = run("train", "vit_ti16", "--data", "digits")
    assert status == 2
    assert "pip install 'efficient-vits[train]'" in err
