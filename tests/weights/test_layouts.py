"""The benchmark's parameter names become ours; written by hand from its published code."""

import pytest
import torch

import efficient_vits
from efficient_vits.models import create_vit
from efficient_vits.weights import Loaded, WeightsError

SIZES = {
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
    "img_size": 64,
    "num_classes": 5,
    "no_embed_class": True,
    "init_values": 1e-4,
}


def tiny(**arguments):
    model = create_vit(**SIZES, **arguments).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


def replaced(state, names):
    """`state` with parts of its names replaced."""
    out = {}
    for name, value in state.items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        out[name] = value
    assert out.keys() != state.keys()
    return out


def deit(state):
    return replaced(state, {"ls1.gamma": "gamma_1", "ls2.gamma": "gamma_2"})


def hydra(state):
    return replaced(state, {"attn.proj.": "attn.out."})


def linformer(state):
    out = replaced(state, {"attn.proj.": "attn.to_out."})
    for block in ("blocks.0", "blocks.1"):
        parts = out.pop(f"{block}.attn.qkv.weight").split(32)
        for part, value in zip("qkv", parts, strict=True):
            out[f"{block}.attn.to_{part}.weight"] = value
    return out


def switch(state):
    out = replaced(state, {"mlp.router.": "mlp.switch."})
    for name in [name for name in out if ".mlp.fc" in name]:
        block, rest = name.split(".mlp.")
        for index, value in enumerate(out.pop(name)):
            out[f"{block}.mlp.experts.{index}.{rest}"] = value
    assert out["blocks.1.mlp.experts.10.fc2.weight"].shape == (32, 128)
    return out


CASES = {
    "deit": ({}, deit),
    "hydra": ({"attention": "hydra"}, hydra),
    "linformer": ({"attention": "linformer", "k": 8, "qkv_bias": False}, linformer),
    # More than ten experts: their order is not that of their names as text.
    "switch": ({"mlp": "switch", "num_experts": 11}, switch),
    "deit and switch": (
        {"mlp": "switch", "num_experts": 11},
        lambda state: switch(deit(state)),
    ),
    "hydra in a reduced ViT": ({"attention": "hydra", "reduction": "tome", "r": 2}, hydra),
}


@pytest.mark.parametrize(("arguments", "to_reference"), CASES.values(), ids=CASES)
def test_names_of_the_benchmark_become_ours(arguments, to_reference):
    source, model = tiny(**arguments), tiny(**arguments)
    ours = source.state_dict()
    theirs = to_reference(ours)
    loaded = efficient_vits.load_weights(model, theirs)
    assert loaded == Loaded("benchmark reference", resampled=[], absent=[])
    for name, value in model.state_dict().items():
        assert torch.equal(value, ours[name]), name


@pytest.mark.parametrize("case", ["deit", "hydra", "linformer", "switch"])
def test_none_of_the_benchmarks_tensors_may_be_missing(case):
    arguments, to_reference = CASES[case]
    model = tiny(**arguments)
    theirs = to_reference(model.state_dict())
    for name in theirs:
        # The first block stands for the others.
        if not name.startswith("blocks.1."):
            with pytest.raises(WeightsError, match="do not fit"):
                efficient_vits.load_weights(model, {n: theirs[n] for n in theirs if n != name})


def test_resolution_and_names_at_once():
    arguments, to_reference = CASES["linformer"]
    source = tiny(**arguments)
    model = create_vit(**{**SIZES, "img_size": 96}, **arguments)
    loaded = efficient_vits.load_weights(model, to_reference(source.state_dict()))
    assert loaded.layout == "benchmark reference"
    source.set_input_size((96, 96))
    for name, value in model.state_dict().items():
        assert torch.equal(value, source.state_dict()[name]), name


def test_one_tensor_twice_under_different_names_must_agree():
    model = tiny()
    state = deit(model.state_dict())
    state["blocks.0.ls1.gamma"] = state["blocks.0.gamma_1"].clone()
    assert efficient_vits.load_weights(tiny(), state).layout == "benchmark reference"
    state["blocks.0.ls1.gamma"] += 1
    with pytest.raises(WeightsError, match=r"ls1\.gamma"):
        efficient_vits.load_weights(tiny(), state)
