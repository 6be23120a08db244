"""Two processes, each with a part of the parameters, learn what one learns."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import Subset

from efficient_vits.training import (
    Options,
    Recipe,
    Start,
    evaluate_source,
    load_data,
    precision,
    train,
)
from efficient_vits.training.sharding import blocks

SMALL = {"depth": 2, "embed_dim": 32, "num_heads": 2}
RECIPE = Recipe(
    name="tiny",
    epochs=2,
    warmup_epochs=1,
    batch_size=448,  # three updates an epoch
    img_size=32,
    lr=3e-3,
    cutmix=0.0,
    drop_path_rate=0.0,
    three_augment=(),
    color_jitter=0.0,
    ema_decay=0.9,
)
RUNS = """
import json, sys
from dataclasses import replace
from pathlib import Path
import torch
from torch.utils.data import Subset
from efficient_vits.training import NotFiniteError, Options, Recipe, Start, session
from efficient_vits.training import load_data, precision, train

folder, small = Path(sys.argv[1]), json.loads(sys.argv[2])
recipe = Recipe(**json.loads(sys.argv[3]))
data = load_data("digits")
options = Options(fsdp=True, save_every=1, micro_batch=112)
data = replace(data, test=Subset(data.test, range(449)))

def run(name, model="vit_ti16", recipe=recipe, arguments=small, **how):
    start = Start(model, arguments)
    return train(start, data, recipe, folder / name, options=options, cpu=True, **how)

run("from the beginning")
run("after one process", resume=True)
run("batch norms", "slab_ti16")

def leave(update):
    if (update.epoch, update.index) == (1, 0):
        raise KeyboardInterrupt

try:
    run("interrupted", on_update=leave)
except KeyboardInterrupt:
    pass

teacher = str(folder / "from the beginning")
changes = {"distillation": "dynamicvit", "teacher": teacher, "ema_decay": None}
own = {**small, "depth": 4}  # as deep as there are stages
run("distilled", "dynamicvit_ti16", recipe.with_changes(**changes), own)

build = session.build_model
def broken(*given):
    model = build(*given)
    torch.nn.init.constant_(model.blocks[1].mlp.fc1.bias, float("nan"))
    return model
session.build_model = broken
try:
    run("not finite")
except NotFiniteError as error:
    rank = torch.distributed.get_rank()
    (folder / f"error-{rank}.txt").write_text(str(error))

precision.HALF_ON.add("cpu")
session.build_model = build
run("half")

class Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.clone()
        gradient[0] = float("inf")  # what the first process keeps
        return gradient

def spiked(*given):
    model = build(*given)
    model.spare = torch.nn.Parameter(torch.zeros(4))
    model.register_forward_hook(lambda model, _, out: out + Spike.apply(model.spare).sum())
    return model
session.build_model = spiked
run("spiked")
"""
MECHANISMS = """
import copy, json, sys
import timm, torch
from accelerate import Accelerator
from efficient_vits import auxiliary_loss
from efficient_vits.attention import attention_traits, list_attentions
from efficient_vits.mlp import list_mlps
from efficient_vits.reduction import list_reductions
from efficient_vits.training.sharding import shard, whole_tensor

device = Accelerator(cpu=True).device
small = {**json.loads(sys.argv[1]), "depth": 4, "img_size": 64}

def cases():
    for name in list_attentions():
        traits = attention_traits(name)
        pooled = {} if traits.prefix_tokens and traits.mixes_prefix else {
            "class_token": False, "global_pool": "avg"
        }
        yield f"attention {name}", "vit_ti16", {**small, "attention": name, **pooled}
    for name in list_reductions():
        yield f"reduction {name}", "vit_ti16", {**small, "reduction": name}
    for name in list_mlps():
        yield f"mlp {name}", "vit_ti16", {**small, "mlp": name}
    yield "blocks used twice", "tokenlearner_ti16_8_50", {"img_size": 64}
    yield "parameters in several blocks", "coat_lite_tiny", {"img_size": 64}

def norms(model, images):
    torch.manual_seed(0)
    model.train()
    loss = model(images).square().mean() + auxiliary_loss(model)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    torch.manual_seed(0)
    model.eval()
    with torch.no_grad():
        return [float(loss), float(whole_tensor(norm)), float(model(images).norm())]

found = {}
for case, name, arguments in cases():
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, **arguments)
    images = torch.randn(2, 3, 64, 64)
    sharded = copy.deepcopy(model)
    shard(sharded, sharded, device)
    found[case] = {"whole": norms(model, images), "spread": norms(sharded, images)}
if torch.distributed.get_rank() == 0:
    print(json.dumps(found))
torch.distributed.destroy_process_group()
"""


def digits():
    """With 449 test images in batches of 224: only one process has some of the last batch."""
    data = load_data("digits")
    return replace(data, test=Subset(data.test, range(449)))


def two_processes(folder, script, *arguments):
    """What two processes print."""
    (folder / "script.py").write_text(script)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone",
        "--local-addr", "127.0.0.1", str(folder / "script.py"), *arguments,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return done.stdout


class Left(Exception):
    pass


def one_process(folder, model="vit_ti16", micro_batch=None, **how):
    """The run that others are compared with, or a part of it."""
    options = Options(save_every=1, micro_batch=micro_batch)
    return train(
        Start(model, SMALL),
        digits(),
        RECIPE,
        folder,
        options=options,
        cpu=True,
        **how,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The runs of both kinds."""
    folder = tmp_path_factory.mktemp("sharded")

    def leave(update):
        if update.epoch == 1:
            raise Left

    one_process(folder / "one")
    with pytest.raises(Left):
        one_process(folder / "after one process", on_update=leave)
    two_processes(folder, RUNS, str(folder), json.dumps(SMALL), RECIPE.model_dump_json())
    shutil.copytree(folder / "interrupted", folder / "after two processes", symlinks=True)
    one_process(folder / "after two processes", resume=True)
    return folder


def rows(run):
    return [json.loads(row) for row in (run / "epochs.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ["from the beginning", "after one process", "after two processes"])
def test_it_learns_what_one_process_learns(name, folder):
    for one, two in zip(rows(folder / "one"), rows(folder / name), strict=True):
        assert two["losses"] == pytest.approx(one["losses"], abs=1e-5)
        assert two["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=1e-3)
        assert two["test_loss"] == pytest.approx(one["test_loss"], abs=1e-4)
    for file in ("model.safetensors", "ema.safetensors"):
        expected = load_file(folder / "one" / "last" / file)
        found = load_file(folder / name / "last" / file)
        assert found.keys() == expected.keys()
        for key, weight in expected.items():
            torch.testing.assert_close(found[key], weight, rtol=1e-3, atol=1e-4)


def test_what_a_run_leaves_is_whole(folder):
    run = folder / "from the beginning"
    result = json.loads((run / "result.json").read_text())
    one = json.loads((folder / "one" / "result.json").read_text())
    assert result["training"]["sharded"]
    assert not one["training"]["sharded"]
    assert (result["parameters"], result["flops"]) == (one["parameters"], one["flops"])
    assert evaluate_source(run, digits(), cpu=True).top1 == pytest.approx(result["top1"])


def test_batch_norms_take_the_images_of_both_processes(folder, tmp_path):
    one_process(tmp_path / "one", "slab_ti16", micro_batch=224)
    for one, two in zip(rows(tmp_path / "one"), rows(folder / "batch norms"), strict=True):
        assert two["losses"] == pytest.approx(one["losses"], abs=1e-5)
        assert two["test_loss"] == pytest.approx(one["test_loss"], abs=1e-4)


def test_distillation(folder):
    assert min(row["losses"]["distillation"] for row in rows(folder / "distilled")) > 0


def test_a_loss_that_is_not_finite_is_explained_by_every_process(folder):
    for rank in (0, 1):
        text = (folder / f"error-{rank}.txt").read_text()
        assert "first output that is not finite: blocks.1.mlp.fc1 (Linear)" in text
        assert "parameters that are not finite: blocks.1.mlp.fc1.bias" in text


def test_float16_learns_what_one_process_learns(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "HALF_ON", {"cpu"})
    one_process(tmp_path / "half")
    for one, two in zip(rows(tmp_path / "half"), rows(folder / "half"), strict=True):
        assert two["losses"] == pytest.approx(one["losses"], rel=2e-3)
        assert one["losses"] != rows(folder / "one")[0]["losses"]


def test_gradients_that_overflow_in_one_process(folder):
    """All processes leave the update out."""
    assert [row["skipped_updates"] for row in rows(folder / "spiked")] == [3, 3]
    weights = load_file(folder / "spiked" / "last" / "model.safetensors")
    averaged = load_file(folder / "spiked" / "last" / "ema.safetensors")
    for name, weight in weights.items():
        torch.testing.assert_close(weight, averaged[name], rtol=0, atol=1e-7)
    assert weights["head.weight"].std() > 0


def test_every_mechanism_computes_the_same(tmp_path):
    found = json.loads(two_processes(tmp_path, MECHANISMS, json.dumps(SMALL)))
    assert len(found) > 40
    for case, values in found.items():
        assert values["spread"] == pytest.approx(values["whole"], rel=1e-3), case


def test_blocks_with_common_parameters_stay_together():
    shared, own = nn.Linear(2, 2), nn.Linear(2, 2)
    model = nn.ModuleDict(
        {
            "blocks": nn.ModuleList([nn.Sequential(shared), nn.Sequential(shared), own, own]),
            "head": nn.Sequential(nn.ReLU()),
        }
    )
    assert blocks(model) == [own]
