import hashlib
from pathlib import Path

import pytest
import timm
import torch
from hub_server import git_oid

from efficient_vits._hub_cache import check_cached, content_name, verified
from efficient_vits.weights import WeightsError

CONTENT = bytes(range(256)) * 5000  # more than one chunk


def cached(folder: Path, name: str, content: bytes = CONTENT) -> Path:
    """A file as the client keeps it: a link to a blob under its name."""
    blob = folder / "blobs" / name
    link = folder / "snapshots" / "0" / "model.safetensors"
    for path in (blob, link):
        path.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(content)
    link.symlink_to(Path("../../blobs", name))
    return link


def test_names_by_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    assert content_name(path, "0" * 64) == hashlib.sha256(CONTENT).hexdigest()
    assert content_name(path, "0" * 40) == git_oid(CONTENT)
    assert git_oid(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"  # as git hash-object
    for other in ("", "0" * 63, "g" * 64, "W/abc"):
        assert content_name(path, other) is None


@pytest.mark.parametrize("kind", ["sha256", "git"])
def test_whole_files_pass_and_damaged_ones_are_taken_out(tmp_path: Path, kind: str) -> None:
    name = git_oid(CONTENT) if kind == "git" else hashlib.sha256(CONTENT).hexdigest()
    link = cached(tmp_path, name)
    check_cached(link, "org/model")
    link.resolve().write_bytes(CONTENT[:-1] + b"?")
    with pytest.raises(WeightsError, match=r"model\.safetensors of org/model is damaged"):
        check_cached(link, "org/model")
    assert [path for path in tmp_path.rglob("*") if not path.is_dir()] == []


def test_without_a_name_there_is_nothing_to_compare_with(tmp_path: Path) -> None:
    check_cached(cached(tmp_path, "an-etag-of-another-kind"), "org/model")
    plain = tmp_path / "plain"
    plain.write_bytes(CONTENT)
    check_cached(plain, "org/model")


def test_a_store_behind_the_blob_has_names_of_its_own(tmp_path: Path) -> None:
    link = cached(tmp_path, hashlib.sha256(CONTENT).hexdigest())
    blob = link.resolve()
    store = tmp_path / ("0" * 64)
    blob.rename(store)
    blob.symlink_to(store)
    check_cached(link, "org/model")


@pytest.mark.parametrize("where", ["hf_hub_id", "hf_hub_filename"])
def test_weights_are_compared_before_they_reach_the_filter(tmp_path: Path, where: str) -> None:
    name = hashlib.sha256(CONTENT).hexdigest()
    storage = tmp_path / "models--org--model"
    link = cached(storage, name, CONTENT[:-1])
    (storage / "refs").mkdir()
    (storage / "refs" / "main").write_text("0")
    file = {"hf_hub_filename": "model.bin"} if where == "hf_hub_filename" else {}
    model = timm.create_model("hydra_ti16", depth=1)
    model.pretrained_cfg = {"hf_hub_id": "org/model", **file}
    asked = []
    check = verified(lambda state, _: asked.append(state) or {"seen": state}, tmp_path)
    with pytest.raises(WeightsError, match="damaged"):
        check({}, model)
    assert (asked, link.is_symlink()) == ([], False)
    assert check({}, model) == {"seen": {}}


def test_a_model_knows_what_it_was_created_with() -> None:
    given = {"img_size": (64, 96), "attention": "hydra", "reduction": "tome", "r": 2}
    model = timm.create_model("vit_ti16", depth=1, device="meta", **given)
    assert model.creation_arguments == {**given, "depth": 1}
    overlay = {"mean": (0.5, 0.5, 0.5)}
    model = timm.create_model("hydra_ti16", pretrained_cfg_overlay=overlay, dtype=torch.float64)
    assert model.creation_arguments == {}
