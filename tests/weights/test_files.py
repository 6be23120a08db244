"""What a file of weights may look like, and what is refused."""

import argparse
import itertools
import pickle
import sys
import types

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import efficient_vits
from efficient_vits.weights import WeightsError


def layer():
    return nn.Linear(3, 2)


def state():
    return {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.tensor([7.0, 8.0])}


def assert_loads(source):
    model = layer()
    loaded = efficient_vits.load_weights(model, source)
    assert loaded.layout == "efficient_vits"
    assert torch.equal(model.weight, state()["weight"])
    assert torch.equal(model.bias, state()["bias"])


def assert_refused(source, match):
    model = layer()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(WeightsError, match=match):
        efficient_vits.load_weights(model, source)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("suffix", ["pt", "pth", "bin", "ckpt"])
def test_pytorch_files(tmp_path, suffix):
    path = tmp_path / f"weights.{suffix}"
    torch.save(state(), path)
    assert_loads(path)
    assert_loads(str(path))


def test_pytorch_files_of_the_old_format(tmp_path):
    torch.save(state(), tmp_path / "weights.pt", _use_new_zipfile_serialization=False)
    assert_loads(tmp_path / "weights.pt")


def test_safetensors_files(tmp_path):
    safetensors.torch.save_file(state(), tmp_path / "weights.safetensors")
    assert_loads(tmp_path / "weights.safetensors")


@pytest.mark.parametrize(
    "wrappers",
    [
        ("model",),
        ("state_dict",),
        ("model_state",),
        ("model", "state_dict"),
        ("state_dict", "model_state", "model"),
    ],
)
def test_wrappers_are_opened(tmp_path, wrappers):
    wrapped = state()
    for name in reversed(wrappers):
        wrapped = {name: wrapped, "epoch": 3, "optimizer": {"lr": 0.1}}
    assert_loads(wrapped)
    torch.save(wrapped, tmp_path / "weights.pt")
    assert_loads(tmp_path / "weights.pt")


@pytest.mark.parametrize(
    "prefix",
    ["".join(p) for n in (1, 2, 3) for p in itertools.product(["module.", "_orig_mod."], repeat=n)],
)
def test_prefixes_of_parallel_and_compiled_models_are_taken_off(prefix):
    assert_loads({prefix + name: value for name, value in state().items()})


def test_a_compiled_part_of_a_model():
    model = nn.Sequential(layer())
    efficient_vits.load_weights(model, {f"0._orig_mod.{n}": v for n, v in state().items()})
    assert torch.equal(model[0].weight, state()["weight"])


def test_a_child_called_module_keeps_its_name():
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Module()
            self.inner.module = layer()

    model = Holder()
    efficient_vits.load_weights(model, {f"inner.module.{n}": v for n, v in state().items()})
    assert torch.equal(model.inner.module.weight, state()["weight"])


def test_one_tensor_under_two_names():
    twice = {**state(), "module.bias": state()["bias"]}
    assert_loads(twice)
    twice["module.bias"] = twice["module.bias"] + 1
    assert_refused(twice, "bias stands for two tensors")


def test_two_names_of_tensors_of_another_shape():
    assert_refused({**state(), "module.bias": torch.zeros(3)}, "bias stands for two tensors")


@pytest.mark.parametrize("value", [3, "text", [1.0], None, {"weight": torch.zeros(2, 3)}])
def test_entries_that_are_no_tensors_are_named(value):
    assert_refused({**state(), "alien": value}, "alien")


def test_many_entries_that_are_no_tensors_are_counted():
    assert_refused({f"n{i}": i for i in range(8)}, "'n0', 'n1', 'n2', 'n3', 'n4' and 3 more")


def test_a_name_that_is_no_string():
    assert_refused({**state(), 0: torch.zeros(1)}, "0")


def test_nothing_inside():
    assert_refused({}, r"missing \(2\): weight, bias")
    assert_refused({"model": {}}, r"missing \(2\): weight, bias")


def test_no_such_file(tmp_path):
    assert_refused(tmp_path / "nowhere.pt", "nowhere.pt")


def test_a_directory(tmp_path):
    assert_refused(tmp_path, "no file")


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_an_empty_file(tmp_path, suffix):
    path = tmp_path / f"empty.{suffix}"
    path.write_bytes(b"")
    assert_refused(path, f"cannot read weights from .*empty.{suffix}")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_truncated_file(tmp_path, suffix, share):
    path = tmp_path / f"cut.{suffix}"
    save = torch.save if suffix == "pt" else safetensors.torch.save_file
    save(state(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert_refused(path, f"cut.{suffix}")


def test_a_file_of_another_format_than_its_name_says(tmp_path):
    torch.save(state(), tmp_path / "weights.safetensors")
    assert_refused(tmp_path / "weights.safetensors", "cannot read weights")
    safetensors.torch.save_file(state(), tmp_path / "weights.pt")
    assert_refused(tmp_path / "weights.pt", r"weights\.pt")


@settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(content=st.binary(max_size=64), pickled=st.booleans(), safe=st.booleans())
def test_arbitrary_bytes_are_refused(tmp_path, content, pickled, safe):
    path = tmp_path / ("noise.safetensors" if safe else "noise.pt")
    path.write_bytes(b"\x80\x02" * pickled + content)
    assert_refused(path, "noise")


@pytest.mark.parametrize("content", [torch.zeros(3), [torch.zeros(3)], 5])
def test_a_pytorch_file_of_something_else(tmp_path, content):
    torch.save(content, tmp_path / "other.pt")
    assert_refused(tmp_path / "other.pt", "not a state dict")


class Trap:
    """Unpickled by the ordinary unpickler, it writes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def saved_by_torch(content, path):
    torch.save(content, path)


def saved_by_old_torch(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def saved_by_pickle(content, path):
    path.write_bytes(pickle.dumps(content, protocol=2))


@pytest.mark.parametrize("save", [saved_by_torch, saved_by_old_torch, saved_by_pickle])
def test_code_in_a_file_is_refused_and_not_run(tmp_path, save):
    sprung, path = tmp_path / "sprung", tmp_path / "trap.pt"
    save({"weight": Trap(sprung)}, path)
    assert_refused(path, "nothing in it was run")
    assert not sprung.exists()
    # The trap works: a loader that trusts the file springs it.
    if save is saved_by_pickle:
        pickle.loads(path.read_bytes())["weight"].close()
    else:
        torch.load(path, weights_only=False)["weight"].close()
    assert sprung.exists()


def test_settings_beside_the_tensors_are_read_and_forgotten(tmp_path):
    """As training code leaves them: arguments, numbers of NumPy, nodes of a configuration."""
    best = {"best": np.float64(81.4), "args": argparse.Namespace(lr=0.1, out=tmp_path)}
    torch.save({"model": state(), "epoch": 3, **best}, tmp_path / "checkpoint.pth")
    assert_loads(tmp_path / "checkpoint.pth")
    node = types.ModuleType("yacs.config")
    node.CfgNode = type("CfgNode", (dict,), {"__module__": "yacs.config"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "yacs.config", node)
        config = node.CfgNode(MODEL=node.CfgNode(NAME="swin"))
        config.__dict__["frozen"] = True
        torch.save({"model": state(), "config": config}, tmp_path / "node.pth")
    assert_loads(tmp_path / "node.pth")


class Disguised(argparse.Namespace):
    """Settings of a class of one's own."""


def test_settings_of_any_other_class_are_refused(tmp_path):
    torch.save({"model": state(), "args": Disguised(lr=1)}, tmp_path / "other.pth")
    assert_refused(tmp_path / "other.pth", "nothing in it was run")


def test_what_is_read_in_a_file_of_settings_runs_no_code(tmp_path):
    """The name of a harmless class with the arguments of a dangerous call."""
    sprung = tmp_path / "sprung"
    path = tmp_path / "trap.pth"
    torch.save({"model": state(), "args": argparse.Namespace(run=Trap(sprung))}, path)
    assert_refused(path, "nothing in it was run")
    assert not sprung.exists()


def test_reading_leaves_no_class_allowed_for_others(tmp_path):
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": state(), "args": argparse.Namespace(lr=0.1)}, path)
    assert_loads(path)
    with pytest.raises(pickle.UnpicklingError, match="Namespace"):
        torch.load(path, weights_only=True)
