import json

import pytest
import torch

from efficient_vits.training import CheckpointError
from efficient_vits.training.checkpoint import (
    join_tensors,
    load_state,
    load_training,
    point,
    save_checkpoint,
    split_tensors,
    tidy,
)

WEIGHTS = {"a": torch.arange(6.0).view(2, 3).t(), "b": torch.ones(2)}
TRAINING = {"state": {0: {"step": 3, "m": torch.ones(2)}}, "groups": [{"lr": 0.1, "params": [0]}]}


def save(run, update, epoch=1, batch=0):
    state = {"epoch": epoch, "batch": batch}
    return save_checkpoint(run, update, state, model=WEIGHTS, training=TRAINING)


def test_everything_comes_back(tmp_path):
    from safetensors.torch import load_file

    folder = save(tmp_path, 7)
    assert (tmp_path / "last").resolve() == folder
    state = load_state(tmp_path / "last")
    assert (state["update"], state["epoch"]) == (7, 1)
    weights = load_file(folder / "model.safetensors")
    assert all(torch.equal(weights[name], WEIGHTS[name]) for name in WEIGHTS)
    training = load_training(folder, state)
    assert training["groups"] == TRAINING["groups"]
    assert training["state"][0]["step"] == 3  # the key is a number again
    assert torch.equal(training["state"][0]["m"], torch.ones(2))


def test_an_optimizers_state_comes_back():
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimizer.step()
    skeleton, tensors = split_tensors(optimizer.state_dict())
    other = torch.optim.AdamW([torch.nn.Parameter(torch.ones(3))])
    other.load_state_dict(join_tensors(json.loads(json.dumps(skeleton)), tensors))
    left, right = (one.state_dict()["state"][0] for one in (optimizer, other))
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_an_interrupted_write_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    save(tmp_path, 1)
    from efficient_vits.training import checkpoint

    def killed(*_):
        raise KeyboardInterrupt

    for moment in ("save_file", "file_hash", "_sync", "point"):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, moment, killed)
            with pytest.raises(KeyboardInterrupt):
                save(tmp_path, 2)
        assert load_state(tmp_path / "last")["update"] == 1
    save(tmp_path, 2)
    assert load_state(tmp_path / "last")["update"] == 2


def test_a_damaged_checkpoint_is_refused(tmp_path):
    folder = save(tmp_path, 1)
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        load_state(folder)
    file.unlink()
    with pytest.raises(CheckpointError, match="lacks model"):
        load_state(folder)
    (folder / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no checkpoint of a training run"):
        load_state(folder)


def test_what_is_kept(tmp_path):
    for epoch in range(1, 8):
        save(tmp_path, 10 * epoch, epoch)
    save(tmp_path, 75, epoch=6, batch=5)
    point(tmp_path, "best", tmp_path / "checkpoints" / "00000020")
    (tmp_path / "checkpoints" / "00000080.part").mkdir()
    tidy(tmp_path, keep_every=3)
    kept = sorted(folder.name for folder in (tmp_path / "checkpoints").iterdir())
    assert kept == ["00000020", "00000030", "00000060", "00000075"]
    tidy(tmp_path, keep_every=None)
    kept = sorted(folder.name for folder in (tmp_path / "checkpoints").iterdir())
    assert kept == ["00000020", "00000075"]


def test_a_run_can_be_moved(tmp_path):
    save(tmp_path / "here", 1)
    (tmp_path / "here").rename(tmp_path / "there")
    assert load_state(tmp_path / "there" / "last")["update"] == 1
