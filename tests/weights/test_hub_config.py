"""What a repository may not do: hostile configurations, pickles and names."""

import io
import json
import math
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hub_client import Client
from hub_server import Fault, Hub
from hypothesis import given, settings
from hypothesis import strategies as st

from efficient_vits.weights import WeightsError, push
from efficient_vits.weights._hub_config import Config, check_config, check_weights

GOOD = {"architecture": "hydra_ti16", "model_args": {"depth": 1, "img_size": [64, 96]}}

HOSTILE: dict[str, Any] = {
    "an unknown architecture": {"architecture": "os.system"},
    "a path for a name": {"architecture": "../../evil"},
    "no architecture": {},
    "a list": [],
    "a class by its path": {**GOOD, "model_args": {"act_layer": "torch.nn.GELU"}},
    "a function by its path": {**GOOD, "model_args": {"attn_layer": "os.system"}},
    "a call": {**GOOD, "model_args": {"attention": "__import__('os').abort()"}},
    "a file": {**GOOD, "model_args": {"weight_init": "/etc/passwd"}},
    "looser loading": {**GOOD, "model_args": {"pretrained_strict": False}},
    "another loader": {**GOOD, "model_args": {"pretrained_filter_fn": "filter"}},
    "a checkpoint": {**GOOD, "model_args": {"checkpoint_path": "weights"}},
    "a config of its own": {**GOOD, "model_args": {"pretrained_cfg": {"file": "weights"}}},
    "no number": {**GOOD, "model_args": {"init_values": math.nan}},
    "deep nesting": {**GOOD, "model_args": {"depth": [[[[[1]]]]]}},
    "arguments that are none": {**GOOD, "model_args": ["depth"]},
    "a file elsewhere": {**GOOD, "pretrained_cfg": {"file": "/home/user/weights.pt"}},
    "another address": {**GOOD, "pretrained_cfg": {"url": "http://127.0.0.1/weights.pt"}},
    "another repository": {**GOOD, "pretrained_cfg": {"hf_hub_id": "evil/model"}},
    "another file": {**GOOD, "pretrained_cfg": {"hf_hub_filename": "../../evil.bin"}},
    "one level, as of old": {"architecture": "hydra_ti16", "url": "http://127.0.0.1/weights.pt"},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_configurations_are_refused(name: str) -> None:
    with pytest.raises(WeightsError, match=r"^config.json of org/model .*Nothing was loaded$"):
        check_config(HOSTILE[name], "org/model")


def test_what_timm_writes_is_accepted(tmp_path: Path) -> None:
    model = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=64, act_layer="gelu")
    timm.models.save_for_hf(model, str(tmp_path), safe_serialization=True)
    config = json.loads((tmp_path / "config.json").read_text())
    assert check_config(config, "org/model").architecture == "vit_tiny_patch16_224"
    assert check_config(GOOD, "org/model") == Config("hydra_ti16", GOOD["model_args"])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [*value, *(text for one in value.values() for text in strings(one))]
    if isinstance(value, list):
        return [text for one in value for text in strings(one)]
    return [value] if isinstance(value, str) else []


@settings(max_examples=60, deadline=None)
@given(json_values)
def test_any_arguments_are_words_and_numbers_or_refused(value: Any) -> None:
    try:
        check_config({"architecture": "hydra_ti16", "model_args": value}, "org/model")
    except WeightsError:
        return
    assert not value or isinstance(value, dict)
    assert all(re.fullmatch("[A-Za-z0-9_+-]*", text) for text in strings(value))
    json.dumps(value, allow_nan=False)


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    push(timm.create_model("hydra_ti16", depth=1), "org/model", save_to=tmp_path)
    path = tmp_path / "model.safetensors"
    check_weights(Config("hydra_ti16", {"depth": 1}), path, "org/model")
    with pytest.raises(WeightsError, match=r"is blocks\.1.attn.proj.bias: missing, want"):
        check_weights(Config("hydra_ti16", {"depth": 2}), path, "org/model")
    with pytest.raises(WeightsError, match=r"1 differ, the first is head.bias|2 differ"):
        check_weights(Config("hydra_ti16", {"depth": 1, "num_classes": 2}), path, "org/model")
    with pytest.raises(WeightsError, match="unexpected argument landmarks=3"):
        check_weights(Config("hydra_ti16", {"depth": 1, "landmarks": 3}), path, "org/model")


# On the Hub: what `pull` refuses leaves nothing behind; timm's own loading runs nothing either.


class Trap:
    """Unpickled, it leaves a file behind."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.canary), "w")


def trees(*folders: Path) -> list[str]:
    return sorted(
        str(path)
        for folder in folders
        for path in folder.rglob("*")
        if ".locks" not in path.parts and path.is_file() and path.name != "CACHEDIR.TAG"
    )


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("weights")
    push(timm.create_model("hydra_ti16", depth=1), "org/model", save_to=folder)
    return (folder / "model.safetensors").read_bytes()


def test_hostile_repositories(
    hub: Hub, client: Client, cache: Path, weights: bytes, tmp_path: Path
) -> None:
    for name, config in HOSTILE.items():
        text = json.dumps(config).encode()
        hub.add("org/hostile", {"config.json": text, "model.safetensors": weights})
        hub.requests.clear()
        error = client.fails(
            "pull('org/hostile', directory=target)", target=str(tmp_path / "target")
        )
        assert (name, error.kind) == (name, "WeightsError")
        assert error.text.startswith("config.json of org/hostile")
        assert trees(cache, tmp_path) == []
        assert hub.seen("GET", "/cdn/") == []


@pytest.mark.parametrize(
    "arguments",
    [
        {"attn_layer": "os.system"},
        {"act_layer": "torch.nn.GELU"},
        {"attention": "__import__('os').abort()"},
        {"pretrained_filter_fn": "print"},
    ],
    ids=lambda arguments: next(iter(arguments)),
)
def test_timms_own_loading_of_a_hostile_configuration_ends_in_an_error(
    hub: Hub, client: Client, weights: bytes, arguments: dict[str, str]
) -> None:
    config = {**GOOD, "model_args": arguments, "pretrained_cfg": {"input_size": [3, 64, 64]}}
    files = {"config.json": json.dumps(config).encode(), "model.safetensors": weights}
    hub.add("org/hostile", files)
    error = client.fails("timm.create_model('hf-hub:org/hostile', pretrained=True)")
    assert error.kind in {"ValueError", "TypeError", "KeyError", "AssertionError", "RuntimeError"}
    assert hub.seen("GET", "/cdn/") == []


def test_a_pickle_with_code_runs_nothing(
    hub: Hub, client: Client, cache: Path, tmp_path: Path
) -> None:
    canary = tmp_path / "ran"
    content = pickle.dumps({"head.bias": Trap(canary)})
    pickle.loads(content)["head.bias"].close()
    assert canary.exists()  # it would work
    canary.unlink()
    config = json.dumps({**GOOD, "pretrained_cfg": {"input_size": [3, 64, 96]}}).encode()
    hub.add("org/pickle", {"config.json": config, "pytorch_model.bin": content})
    error = client.fails("pull('org/pickle')")
    assert error.kind == "WeightsError"
    assert trees(cache) == []
    client.fails("timm.create_model('hf-hub:org/pickle', pretrained=True)")
    assert not canary.exists()


def test_a_pytorch_file_of_tensors_is_accepted(hub: Hub, client: Client) -> None:
    model = timm.create_model("hydra_ti16", depth=1, img_size=64)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    config = {"architecture": "hydra_ti16", "model_args": {"depth": 1, "img_size": 64}}
    text = json.dumps({**config, "pretrained_cfg": {}}).encode()
    hub.add("org/old", {"config.json": text, "pytorch_model.bin": file.getvalue()})
    client.run("timm.create_model(f'local-dir:{pull(\"org/old\")}', pretrained=True)")


NAMES = {
    "up": "../../../../../evil",
    "from the root": "/tmp/evil",
    "Windows": "..\\..\\evil",
    "a drive": "C:\\evil",
    "empty": "",
}


@pytest.mark.parametrize("header", ["ETag", "X-Repo-Commit"])
@pytest.mark.parametrize("name", NAMES)
def test_names_from_the_server_cannot_leave_the_cache(
    hub: Hub, client: Client, cache: Path, header: str, name: str
) -> None:
    """The client makes a path of what the server calls a file and its commit."""
    hub.add("org/model", {"config.json": json.dumps(GOOD).encode()})
    headers = {header: f'"{NAMES[name]}"' if header == "ETag" else NAMES[name]}
    hub.faults.append(Fault("HEAD", "config", times=99, headers=headers))
    home = client.log.parent
    before = trees(home)
    error = client.fails("pull('org/model')")
    assert error.kind == "WeightsError"
    assert error.text.startswith("the Hub names config.json of org/model")
    assert trees(home) == before
    assert hub.seen("GET") == []


@pytest.mark.parametrize("name", NAMES)
def test_names_of_other_files_and_of_downloads_do_not_matter(
    hub: Hub, client: Client, cache: Path, weights: bytes, name: str
) -> None:
    config = {"architecture": "hydra_ti16", "model_args": {"depth": 1}, "pretrained_cfg": {}}
    files = {"config.json": json.dumps(config).encode(), "model.safetensors": weights}
    hub.add("org/model", {**files, NAMES[name]: b"evil"})
    disposition = {"Content-Disposition": f'attachment; filename="{NAMES[name]}";'}
    hub.faults.append(Fault("GET", "", times=99, headers=disposition))
    home = client.log.parent
    outside = [path for path in trees(home) if not path.startswith(str(cache))]
    client.run("pull('org/model')")
    inside = [path for path in trees(cache) if "snapshots" in path]
    assert sorted(path.split("/")[-1] for path in inside) == ["config.json", "model.safetensors"]
    assert [path for path in trees(home) if not path.startswith(str(cache))] == outside
    assert [r.path for r in hub.seen("GET") if "evil" in r.path] == []


@pytest.mark.parametrize(
    ("repo", "revision"),
    [("../evil", None), ("/tmp/evil", None), ("a/b/c", None), ("org/model", "../../evil")],
)
def test_names_that_are_passed_are_checked(
    hub: Hub, client: Client, repo: str, revision: str | None
) -> None:
    error = client.fails("pull(repo, revision=revision)", repo=repo, revision=revision)
    assert error.kind in {"ValueError", "HFValidationError"}
    assert hub.requests == []
