"""`push`, and what `timm.create_model("hf-hub:...")` makes of it, in a process of its own."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from hub_client import Client
from hub_server import Fault, Hub
from torch import nn

import efficient_vits
from efficient_vits.attention.hydra import HydraAttention
from efficient_vits.efficiency import measure
from efficient_vits.weights import WeightsError, push

TINY = {"depth": 2, "num_classes": 7}

MODELS = {
    "hydra_s16": {"num_classes": 7, "img_size": 64, "depth": 3},
    "vit_s16": {
        "attention": "hydra",
        "reduction": "tome",
        "r": 4,
        "img_size": (64, 96),
        "depth": 3,
        "in_chans": 1,
        "drop_path_rate": 0.1,
    },
    "gfnet_ti16": {"img_size": 64, "depth": 2},
    "swin_ti_w7": {"img_size": 112, "depths": (1, 1, 1, 1)},
    "efficientmod_xxs": {"num_classes": 3},
}


@pytest.mark.parametrize("name", MODELS)
def test_there_and_back(hub: Hub, client: Client, name: str) -> None:
    """Pushed by one model, loaded by name of the repository alone: equal outputs."""
    same, arguments, url = client.run(
        """
        import glob
        torch.manual_seed(0)
        model = timm.create_model(name, **arguments)
        for parameter in model.parameters():  # so that defaults would be noticed
            torch.nn.init.normal_(parameter, std=0.05)
        model.train()
        pushed = push(model, "org/model", token=token)
        assert all(module.training for module in model.modules())
        loaded = timm.create_model("hf-hub:org/model", pretrained=True)
        images = torch.randn(2, *loaded.pretrained_cfg["input_size"])
        same = torch.equal(model.eval()(images), loaded.eval()(images))
        result = [same, loaded.creation_arguments, pushed.url]
        """,
        name=name,
        arguments=MODELS[name],
        token=hub.token,
    )
    assert same
    plain = json.loads(json.dumps(MODELS[name]))
    plain.pop("drop_path_rate", None)  # of a training, not of the model
    if isinstance(plain.get("img_size"), int):
        plain["img_size"] = [plain["img_size"]] * 2
    assert plain.items() <= arguments.items()
    head = hub.repositories["org/model"].branches["main"]
    assert url == f"{hub.endpoint}/org/model/commit/{head}"
    files = hub.repositories["org/model"].commits[head]
    assert {"README.md", "config.json", "model.safetensors"} < files.keys()
    assert len(hub.seen("POST", "/commit/")) == 1


def test_the_token_is_written_nowhere(hub: Hub, client: Client) -> None:
    client.run(
        """
        model = timm.create_model("hydra_ti16", depth=1, num_classes=3, img_size=64)
        push(model, "org/secret", private=True, token=token)
        folder = pull("org/secret", token=token)
        """,
        token=hub.token,
    )
    assert hub.repositories["org/secret"].private
    wrong = client.fails(
        'push(timm.create_model("hydra_ti16", depth=1), "org/other", token=token)',
        token="hf_the-wrong-one",
    )
    assert wrong.kind == "HubError"
    assert "the Hub refuses the upload of org/other (401)" in wrong.text
    assert "hf_" not in wrong.text
    home = client.log.parent
    written = b"".join(p.read_bytes() for p in home.rglob("*") if p.is_file())
    sent = b"".join(
        content
        for repository in hub.repositories.values()
        for tree in repository.commits.values()
        for content in tree.values()
    )
    assert len(written) > 1000 < len(sent)
    assert hub.token.encode() not in written + sent
    assert b"hf_the-wrong-one" not in written
    assert wrong.text in wrong.trace
    assert "hf_the-wrong-one" not in wrong.trace.replace('"hf_the-wrong-one"', "")


def test_a_busy_hub_is_asked_again(hub: Hub, client: Client) -> None:
    for path in ("/repos/create", "/preupload/", "/commit/", "/batch"):
        for status in (429, 503):
            fault = Fault("POST", path, status=status, headers={"Retry-After": "0"})
            hub.faults.append(fault)
    client.run(
        """
        import time
        time.sleep = lambda seconds: None  # the client's own pauses
        import efficient_vits.weights._hub_retry as retry
        retry.with_retries.__kwdefaults__["sleep"] = lambda seconds: None
        model = timm.create_model("hydra_ti16", depth=1, num_classes=3, img_size=64)
        push(model, "org/busy", token=token)
        """,
        token=hub.token,
    )
    assert [fault.times for fault in hub.faults] == [0] * 8
    assert len(hub.repositories["org/busy"].commits) == 2  # the Hub's first one, and ours


def test_a_branch_gets_the_commit(hub: Hub, client: Client) -> None:
    first = hub.add("org/model", {"notes.txt": b"kept"})
    hub.repositories["org/model"].branches["trial"] = first
    code = """
        model = timm.create_model("hydra_ti16", depth=1, num_classes=3, img_size=64)
        result = push(model, "org/model", revision=revision, token=token).commit
    """
    commit = client.run(code, revision="trial", token=hub.token)
    branches = hub.repositories["org/model"].branches
    assert branches == {"main": first, "trial": commit}
    assert hub.repositories["org/model"].commits[commit]["notes.txt"] == b"kept"
    error = client.fails(code, revision="none", token=hub.token)
    assert (error.kind, error.text) == ("HubError", "org/model has no such revision")


def test_files_can_be_written_instead(tmp_path: Path) -> None:
    model = timm.create_model("hydra_ti16", img_size=64, **TINY)
    pushed = push(model, "org/model", save_to=tmp_path / "files")
    assert pushed.files == ["README.md", "config.json", "model.safetensors"]
    assert (pushed.folder, pushed.url) == (tmp_path / "files", None)
    config = json.loads((tmp_path / "files/config.json").read_text())
    assert config["architecture"] == "hydra_ti16"
    assert config["model_args"] == {"depth": 2, "num_classes": 7, "img_size": [64, 64]}
    assert config["pretrained_cfg"]["input_size"] == [3, 64, 64]


def test_shared_tensors_get_memory_of_their_own(tmp_path: Path) -> None:
    model = timm.create_model("hydra_ti16", img_size=64, **TINY)
    model.blocks[1].mlp.fc1.weight = model.blocks[0].mlp.fc1.weight
    push(model, "org/model", save_to=tmp_path)
    state = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert state.keys() == model.state_dict().keys()
    assert torch.equal(state["blocks.1.mlp.fc1.weight"], state["blocks.0.mlp.fc1.weight"])


def test_what_changed_since_creation_is_as_it_is_now(tmp_path: Path) -> None:
    model = timm.create_model("hydra_ti16", img_size=64, **TINY)
    model.set_input_size((96, 64))
    model.reset_classifier(5)
    push(model, "org/model", save_to=tmp_path)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert loaded.patch_embed.img_size == (96, 64)
    assert loaded.num_classes == 5


def test_a_half_precision_model(tmp_path: Path) -> None:
    model = timm.create_model("hydra_ti16", img_size=64, **TINY).bfloat16()
    push(model, "org/model", save_to=tmp_path)
    state = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert {value.dtype for value in state.values()} == {torch.bfloat16}


def test_how_images_were_prepared(tmp_path: Path) -> None:
    model = timm.create_model("hydra_ti16", img_size=64, **TINY)
    push(model, "org/model", data_config={"mean": (0.5,) * 3, "std": (0.5,) * 3}, save_to=tmp_path)
    loaded = timm.create_model(f"local-dir:{tmp_path}")
    assert timm.data.resolve_model_data_config(loaded)["mean"] == [0.5, 0.5, 0.5]
    with pytest.raises(ValueError, match="data_config has \\['shape'\\]; accepted are mean, std"):
        push(model, "org/model", data_config={"shape": 1}, save_to=tmp_path)


def test_a_model_of_timms(tmp_path: Path) -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, **TINY)
    with pytest.raises(ValueError, match="pass model_args"):
        push(model, "org/model", save_to=tmp_path)
    push(model, "org/model", model_args={"depth": 2}, save_to=tmp_path)
    assert timm.create_model(f"local-dir:{tmp_path}", pretrained=True).patch_embed.img_size == (
        64,
        64,
    )


def changed(how: str) -> nn.Module:
    model: Any = timm.create_model("vit_ti16", img_size=64, **TINY)
    torch.nn.init.normal_(model.head.weight)
    if how == "attention":
        efficient_vits.replace_attention(model, "linformer")
    elif how == "fewer blocks":
        del model.blocks[1]
    elif how == "other epsilon":
        model.norm.eps = 0.5
    elif how == "pooling":
        model.reset_classifier(
            7, global_pool="avg"
        )  # timm's would have another norm from the start
    return model


@pytest.mark.parametrize("how", ["attention", "fewer blocks", "other epsilon", "pooling"])
def test_a_changed_model_is_refused(tmp_path: Path, how: str) -> None:
    with pytest.raises(WeightsError, match="changed after it was created"):
        push(changed(how), "org/model", save_to=tmp_path / "files")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_pushed(tmp_path: Path) -> None:
    model = timm.create_model("hydra_ti16", img_size=64, **TINY)
    features = timm.create_model("hydra_ti16", features_only=True)
    partial = timm.create_model("vit_ti16", attention=HydraAttention, **TINY)
    meta = timm.create_model("vit_ti16", device="meta", **TINY)
    wider = timm.create_model("hydra_ti16", img_size=64, depth=2, num_classes=8)
    other = measure(wider, throughput=False, memory=False)
    cases: list[tuple[nn.Module, dict[str, Any], str]] = [
        (nn.Linear(2, 2), {}, "Linear is no classifier of timm's registry"),
        (features, {}, "without features_only"),
        (partial, {}, "attention=.* has no form in JSON"),
        (meta, {}, "on the meta device"),
        (model, {"measurement": other}, "measurement is of a model with .* this one has"),
    ]
    for one, options, message in cases:
        with pytest.raises(ValueError, match=message):
            push(one, "org/model", save_to=tmp_path / "files", **options)
    with pytest.raises(ValueError, match="Repo id must use"):
        push(model, "../model", save_to=tmp_path / "files")
    assert list(tmp_path.iterdir()) == []
