"""The loopback Hub stands in for the real one: what the real client sends and expects."""

from pathlib import Path

import pytest
from hub_client import Client
from hub_server import Fault, Hub, git_oid, sha256
from huggingface_hub import get_hf_file_metadata, hf_hub_url

LARGE = bytes(range(256)) * 40


def test_the_clients_round_trip(hub: Hub, client: Client, cache: Path) -> None:
    result = client.run(
        """
        from huggingface_hub import CommitOperationAdd as Add, HfApi, hf_hub_download
        api = HfApi(token=token)
        api.create_repo("org/round", private=True)
        first = api.create_commit(
            "org/round",
            [Add("a/small.txt", b"one"), Add("model.safetensors", large)],
            commit_message="first",
        )
        api.create_commit("org/round", [Add("a/small.txt", b"two")], commit_message="second")
        def read(revision):
            names = ("a/small.txt", "model.safetensors")
            paths = [hf_hub_download("org/round", name, revision=revision, token=token)
                     for name in names]
            return [open(path, "rb").read().hex() for path in paths]
        info = api.model_info("org/round")
        result = [read("main"), read(first.oid), info.sha, info.private,
                  sorted(s.rfilename for s in info.siblings)]
        """,
        token=hub.token,
        large=LARGE,
    )
    newest, pinned, head, private, files = result
    assert newest == [b"two".hex(), LARGE.hex()]
    assert pinned == [b"one".hex(), LARGE.hex()]
    assert head == hub.repositories["org/round"].branches["main"]
    assert private
    assert files == [".gitattributes", "a/small.txt", "model.safetensors"]
    assert len(hub.seen("PUT", "/lfs/")) == 1
    assert len(hub.seen("GET", "/cdn/")) == 1  # one content, kept under its hash
    names = {path.name for path in (cache / "models--org--round/blobs").iterdir()}
    assert names == {git_oid(b"one"), git_oid(b"two"), sha256(LARGE)}


def test_the_token_stays_on_the_hub(hub: Hub, client: Client) -> None:
    hub.add("org/secret", {"model.safetensors": LARGE}, private=True)
    download = """
        from huggingface_hub import hf_hub_download
        hf_hub_download("org/secret", "model.safetensors", token=token)
    """
    assert client.fails(download, token=None).kind == "RepositoryNotFoundError"
    client.run(download, token=hub.token)
    assert hub.seen("HEAD", "resolve")[-1].headers["authorization"] == f"Bearer {hub.token}"
    assert [r for r in hub.seen("GET", "/cdn/") if "authorization" in r.headers] == []
    assert len(hub.seen("GET", "/cdn/")) == 1


@pytest.mark.parametrize(
    ("repo", "file", "revision", "kind"),
    [
        ("org/none", "config.json", None, "RepositoryNotFoundError"),
        ("org/open", "none.json", None, "RemoteEntryNotFoundError"),
        ("org/open", "config.json", "none", "RevisionNotFoundError"),
        ("org/gated", "config.json", None, "GatedRepoError"),
    ],
)
def test_what_is_not_there(hub: Hub, repo: str, file: str, revision: str | None, kind: str) -> None:
    """Each of the client's own errors, by what the server says, in this process's client."""
    hub.add("org/open", {"config.json": b"{}"})
    hub.add("org/gated", {"config.json": b"{}"}, gated=True)
    url = hf_hub_url(repo, file, revision=revision, endpoint=hub.endpoint)
    with pytest.raises(Exception) as raised:  # noqa: PT011
        get_hf_file_metadata(url, token=False)
    assert type(raised.value).__name__ == kind


def test_faults_happen_once_and_in_the_right_place(hub: Hub) -> None:
    hub.add("org/open", {"config.json": b"{}"})
    hub.faults.append(Fault("HEAD", "config", status=503))
    url = hf_hub_url("org/open", "config.json", endpoint=hub.endpoint)
    with pytest.raises(OSError, match="503"):
        get_hf_file_metadata(url, token=False)
    assert get_hf_file_metadata(url, token=False).etag == git_oid(b"{}")
