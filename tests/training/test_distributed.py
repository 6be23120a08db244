"""Two processes on this machine's CPU learn what one learns."""

import json
import os
import subprocess
import sys

import pytest

from efficient_vits.training import Options, Recipe, Start, load_data, train

SMALL = {"embed_dim": 32, "num_heads": 2}
# Model, its arguments, images per pass and process.
CASES = {
    "plain": ("vit_ti16", {**SMALL, "depth": 2}, 28),
    # Its norms are batch norms, whose statistics are those of both processes.
    "batch norms": ("slab_ti16", {**SMALL, "depth": 2}, None),
    # An expert that no token chooses is part of the pass all the same.
    "experts": (
        "switch8_ti16",
        # The balancing loss of a batch is not the mean of those of its halves.
        {**SMALL, "depth": 1, "num_experts": 16, "balance_weight": 0.0},
        None,
    ),
}
RECIPE = Recipe(
    name="tiny",
    epochs=2,
    warmup_epochs=1,
    batch_size=224,
    img_size=32,
    lr=3e-3,
    cutmix=0.0,
    drop_path_rate=0.0,
    three_augment=(),
    color_jitter=0.0,
)
SCRIPT = """
import json, sys
from pathlib import Path
from torch import nn
from efficient_vits.training import session
from efficient_vits.training import Options, Recipe, Start, load_data, train

cases, recipe = json.loads(sys.argv[2]), Recipe(**json.loads(sys.argv[3]))
for name, (model, arguments, micro) in cases.items():
    train(Start(model, arguments), load_data("digits"), recipe, Path(sys.argv[1]) / name, cpu=True,
          options=Options(micro_batch=micro))

build = session.build_model
def with_spare(*given):
    model = build(*given)
    model.spare = nn.Linear(2, 2)
    return model
session.build_model = with_spare
print("with a spare part", file=sys.stderr, flush=True)
folder = Path(sys.argv[1]) / "spare"
train(Start(*cases["plain"][:2]), load_data("digits"), recipe, folder, cpu=True)
"""


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """The folder in which two processes have trained all models, one after another."""
    folder = tmp_path_factory.mktemp("together")
    (folder / "script.py").write_text(SCRIPT)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone",
        # Else it takes the machine's name, and waits for long where that can't be resolved.
        "--local-addr", "127.0.0.1",
        str(folder / "script.py"), str(folder), json.dumps(CASES),
        json.dumps(RECIPE.model_dump(mode="json")),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "WARNING"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    # torch warns of a search for unused parameters that finds none.
    assert "find_unused_parameters" not in done.stderr.partition("with a spare part")[0]
    return folder


def rows(folder):
    return [json.loads(row) for row in (folder / "epochs.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_have_the_losses_of_one(name, together, tmp_path):
    model, arguments, micro = CASES[name]
    options = Options(micro_batch=micro)
    train(Start(model, arguments), load_data("digits"), RECIPE, tmp_path, options=options, cpu=True)
    for one, two in zip(rows(tmp_path), rows(together / name), strict=True):
        assert two["losses"] == pytest.approx(one["losses"], abs=1e-5)
        assert two["top1"] == pytest.approx(one["top1"], abs=0.5)
        assert two["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=1e-3)


def test_parameters_that_no_pass_uses(together):
    """Without a search for them the second update would be an error."""
    for spare, plain in zip(rows(together / "spare"), rows(together / "plain"), strict=True):
        assert spare["losses"] == pytest.approx(plain["losses"], abs=1e-5)
