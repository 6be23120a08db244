import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch

Run = Callable[..., tuple[int, str, str]]


def test_a_named_model_with_weights_from_a_file(run: Run, weights: Path, tmp_path: Path) -> None:
    target = tmp_path / "files"
    options = ("--weights", weights, "--img-size", 64, "--save-to", target, "--recipe", "by chance")
    more = ("--licence", "mit", "--dataset", "one", "--dataset", "two")
    status, out, err = run("push", "hydra_ti16", "org/model", *options, *more)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines == [str(target), "  README.md", "  config.json", "  model.safetensors"]
    card = (target / "README.md").read_text()
    for part in ("license: mit", "- one\n- two\n", "by chance"):
        assert part in card
    assert "## Efficiency" not in card
    loaded = timm.create_model(f"local-dir:{target}", pretrained=True)
    sent = torch.load(weights, weights_only=True)["model"]["head.weight"]
    assert torch.equal(loaded.head.weight, sent)
    assert loaded.patch_embed.img_size == (64, 64)


def test_a_folder_is_sent_as_it_is(
    run: Run, run_json: Callable[..., Any], weights: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    options = ("--weights", weights, "--img-size", 64, "--save-to", first)
    assert run("push", "hydra_ti16", "org/model", *options)[0] == 0
    answer = run_json("push", first, "org/model", "--save-to", second, "--measure")
    assert answer == {
        "files": ["README.md", "config.json", "model.safetensors"],
        "folder": str(second),
        "url": None,
        "commit": None,
    }
    assert "| parameters | " in (second / "README.md").read_text()
    ours, theirs = (safetensors.torch.load_file(d / "model.safetensors") for d in (first, second))
    assert all(torch.equal(ours[name], theirs[name]) for name in {*ours, *theirs})
    configs = [json.loads((d / "config.json").read_text()) for d in (first, second)]
    assert configs[0] == configs[1]


def test_a_model_of_timms(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    model = timm.create_model("vit_tiny_patch16_224", num_classes=4)
    torch.save(model.state_dict(), path)
    target = tmp_path / "files"
    options = ("--weights", path, "--save-to", target)
    assert run("push", "vit_tiny_patch16_224", "org/model", *options)[0] == 0
    assert json.loads((target / "config.json").read_text())["num_classes"] == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("hydra_ti17", "org/model"), "no model 'hydra_ti17'; did you mean"),
        (("hydra_ti16", "org/model"), "weights"),
        (("hydra_ti16", "a/b/c", "--weights", "{weights}"), "a/b/c"),
        (("hydra_ti16", "org/model", "--weights", "none.pt"), "no file none.pt"),
        (("{empty}", "org/model"), "has no config.json"),
        (("{hostile}", "org/model"), "which is not in timm's registry"),
        (("{hostile}", "org/model", "--img-size", "64"), "go with a model's name"),
    ],
)
def test_mistakes(
    refused: Callable[..., str],
    weights: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    for name in ("empty", "hostile"):
        (tmp_path / name).mkdir()
    (tmp_path / "hostile/config.json").write_text('{"architecture": "os.system"}')
    places = {name: tmp_path / name for name in ("empty", "hostile")}
    given = [a.format(weights=weights, **places) for a in arguments]
    assert message in refused("push", *given, "--save-to", tmp_path / "files")
    assert not (tmp_path / "files").exists()
