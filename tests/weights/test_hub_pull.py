"""`pull` and `timm.create_model("hf-hub:...")` where the Hub or the way to it misbehaves."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from hub_client import Client, started
from hub_server import Fault, Hub

from efficient_vits.weights import push

LOAD = 'result = timm.create_model("hf-hub:org/model", pretrained=True).head.bias.tolist()'
PULL = 'result = str(pull("org/model"))'


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A model's repository, as `push` writes it; large enough to be cut in the middle."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("files")
    push(timm.create_model("hydra_ti16", depth=1, num_classes=3), "org/model", save_to=folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def other_weights(files: dict[str, bytes]) -> dict[str, bytes]:
    state = safetensors.torch.load(files["model.safetensors"])
    state["head.bias"] = torch.tensor([1.0, 2.0, 3.0])
    return {**files, "model.safetensors": safetensors.torch.save(state)}


def tree(cache: Path) -> dict[str, bytes | str]:
    """The cache's files and links with their content, but for locks and the mark for backups."""
    return {
        path.relative_to(cache).as_posix(): str(path.readlink())
        if path.is_symlink()
        else path.read_bytes()
        for path in sorted(cache.rglob("*"))
        if (path.is_symlink() or path.is_file())
        and ".locks" not in path.parts
        and path.name != "CACHEDIR.TAG"
    }


def test_into_a_folder(hub: Hub, client: Client, files: dict[str, bytes], tmp_path: Path) -> None:
    hub.add("org/model", {**files, "train.py": b"raise SystemExit('run')"})
    target = tmp_path / "new" / "model"
    client.run("pull('org/model', directory=target)", target=str(target))
    assert {path.name: path.read_bytes() for path in target.iterdir()} == files
    assert not any(path.is_symlink() for path in target.iterdir())
    assert [path.name for path in target.parent.iterdir()] == ["model"]
    code = "timm.create_model('local-dir:' + target, pretrained=True)"
    client.run(code, target=str(target))
    error = client.fails("pull('org/model', directory=target)", target=str(target))
    assert (error.kind, "not an empty folder" in error.text) == ("ValueError", True)


def test_a_revision_pins_all_files(hub: Hub, client: Client, files: dict[str, bytes]) -> None:
    old = hub.add("org/model", files)
    new = hub.add("org/model", other_weights(files))
    code = """
        folder = pull("org/model", revision=revision)
        model = timm.create_model(f"local-dir:{folder}", pretrained=True)
        by_name = timm.create_model(f"hf-hub:org/model@{revision}", pretrained=True)
        assert torch.equal(model.head.bias, by_name.head.bias)
        result = [folder.name, model.head.bias.tolist()]
    """
    assert client.run(code, revision=old) == [old, [0.0, 0.0, 0.0]]
    assert client.run(code, revision="main") == [new, [1.0, 2.0, 3.0]]
    hub.requests.clear()
    client.run(PULL.replace(")", ", revision=revision)", 1), revision=old)
    assert hub.seen("GET") == []
    assert [r.path for r in hub.seen("HEAD") if "README" not in r.path] == []


def test_a_cut_connection_is_taken_up(hub: Hub, client: Client, files: dict[str, bytes]) -> None:
    hub.add("org/model", files)
    hub.faults.append(Fault("GET", "/cdn/", cut=120_000))
    client.run(
        """
        import time
        from huggingface_hub import constants
        time.sleep = lambda seconds: None
        whole, constants.DOWNLOAD_CHUNK_SIZE = constants.DOWNLOAD_CHUNK_SIZE, 50_000
        try:
            pull("org/model")
        finally:
            constants.DOWNLOAD_CHUNK_SIZE = whole
        """
    )
    ranges = [request.headers.get("range") for request in hub.seen("GET", "/cdn/")]
    assert ranges == [None, "bytes=100000-"]  # the client writes whole chunks


@pytest.mark.parametrize("code", [PULL, LOAD], ids=["pull", "create_model"])
def test_a_busy_hub(hub: Hub, client: Client, files: dict[str, bytes], code: str) -> None:
    """429 where the files are, and 503 before; the client's pauses are left out."""
    hub.add("org/model", files)
    hub.faults.append(Fault("HEAD", "config.json", status=503))
    hub.faults.append(Fault("GET", "/cdn/", status=429, headers={"Retry-After": "0"}))
    client.run("import time\ntime.sleep = lambda seconds: None\n" + code)
    assert [fault.times for fault in hub.faults] == [0, 0]


def test_a_hub_that_stays_busy(hub: Hub, client: Client, files: dict[str, bytes]) -> None:
    """Without a cache it is an error, with one the cache is taken."""
    hub.add("org/model", files)
    impatient = """
        import time
        time.sleep = lambda seconds: None
        import efficient_vits.weights._hub_retry as retry
        retry.with_retries.__kwdefaults__["sleep"] = lambda seconds: None
    """
    client.run(impatient)
    hub.faults.append(Fault("HEAD", "config.json", times=99, status=503))
    error = client.fails(PULL)
    assert error.kind == "HubError"
    assert error.text == "the Hub was too busy (503) for config.json of org/model; try again later"
    hub.faults.clear()
    client.run(PULL)
    hub.faults.append(Fault("HEAD", "", times=99, status=503))
    client.run(PULL)


@pytest.mark.parametrize(
    ("repo", "revision", "message"),
    [
        ("org/none", None, "there is no repository org/none, or it is private"),
        ("org/private", None, "there is no repository org/private, or it is private"),
        ("org/gated", None, "org/gated is open to some users only"),
        ("org/model", "none", "org/model has no such revision"),
        ("org/empty", None, "org/empty has no config.json"),
        ("org/bare", None, "org/bare has no model.safetensors; org/bare has no pytorch_model.bin"),
    ],
)
def test_what_is_not_there(
    hub: Hub,
    client: Client,
    cache: Path,
    files: dict[str, bytes],
    repo: str,
    revision: str | None,
    message: str,
) -> None:
    hub.add("org/private", files, private=True)
    hub.add("org/gated", files, gated=True)
    hub.add("org/model", files)
    hub.add("org/empty", {"README.md": b""})
    hub.add("org/bare", {"config.json": files["config.json"]})
    error = client.fails("pull(repo, revision=revision)", repo=repo, revision=revision)
    assert error.kind == "HubError"
    assert error.text.startswith(message)
    assert tree(cache) == {}


BROKEN = {
    "truncated": Fault("GET", "/cdn/", shorter=1000),
    "wrong hash": Fault("GET", "/cdn/", damage=True),
    "always cut": Fault("GET", "/cdn/", times=99, cut=0),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_failed_pull_leaves_the_cache_as_it_was(
    hub: Hub, client: Client, cache: Path, files: dict[str, bytes], how: str, tmp_path: Path
) -> None:
    """An older commit is in the cache, and stays what the main branch stands for offline."""
    hub.add("org/model", files)
    client.run(PULL)
    before = tree(cache)
    hub.add("org/model", other_weights(files))
    hub.faults.append(Fault(**vars(BROKEN[how])))
    target = tmp_path / "target"
    error = client.fails(
        "import time\ntime.sleep = lambda seconds: None\npull('org/model', directory=target)",
        target=str(target),
    )
    assert error.kind == ("WeightsError" if how == "wrong hash" else "HubError")
    assert "model.safetensors of org/model" in error.text
    assert tree(cache) == before
    assert not target.exists()
    hub.faults.clear()
    assert client.run(LOAD) == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("how", BROKEN)
def test_a_failed_load_leaves_nothing_to_load(
    hub: Hub, client: Client, cache: Path, files: dict[str, bytes], how: str
) -> None:
    """timm's own loading: no broken weights are in the cache, and the next call gets whole ones."""
    hub.add("org/model", files)
    hub.faults.append(Fault(**vars(BROKEN[how])))
    error = client.fails("import time\ntime.sleep = lambda seconds: None\n" + LOAD)
    if how == "wrong hash":
        assert error.kind == "WeightsError"
        assert "model.safetensors of org/model is damaged" in error.text
    assert {path.split("/")[-1] for path in tree(cache) if "snapshots" in path} == {"config.json"}
    hub.faults.clear()
    assert client.run(LOAD) == [0.0, 0.0, 0.0]


def test_a_file_that_rots_in_the_cache(
    hub: Hub, client: Client, cache: Path, files: dict[str, bytes]
) -> None:
    hub.add("org/model", files)
    client.run(LOAD)
    blob = next(cache.rglob("model.safetensors")).resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"?")
    hub.requests.clear()
    assert "is damaged" in client.fails(LOAD).text
    assert client.run(LOAD) == [0.0, 0.0, 0.0]
    assert len(hub.seen("GET", "/cdn/")) == 1


def test_offline(
    hub: Hub, client: Client, cache: Path, files: dict[str, bytes], tmp_path: Path
) -> None:
    """From the cache and from a folder; nothing is asked for."""
    hub.add("org/model", files)
    client.run(PULL)
    home = client.log.parent
    hub.requests.clear()
    with started(hub.endpoint, home, HF_HUB_OFFLINE="1") as offline:
        folder = offline.run(PULL)
        assert offline.run(LOAD) == [0.0, 0.0, 0.0]
        offline.run("timm.create_model(f'local-dir:{folder}', pretrained=True)", folder=folder)
        offline.run("pull('org/model', directory=target)", target=str(tmp_path / "copy"))
        error = offline.fails("pull('org/other')")
    assert json.loads((tmp_path / "copy/config.json").read_text())["architecture"] == "hydra_ti16"
    assert error.kind == "HubError"
    assert error.text == (
        "config.json of org/other is not in the cache, and the Hub cannot be reached"
    )
    assert hub.requests == []


def test_without_an_answer_the_cache_is_taken(
    hub: Hub, client: Client, files: dict[str, bytes]
) -> None:
    hub.add("org/model", files)
    folder = client.run(PULL)
    hub.faults.append(Fault("HEAD", "", times=99, drop=True))
    assert client.run(PULL) == folder
    error = client.fails("pull('org/other')")
    assert (error.kind, "the Hub cannot be reached" in error.text) == ("HubError", True)
