"""Two processes on this machine's CPU learn what one learns."""

import json
import os
import subprocess
import sys

import pytest

SCRIPT = """
import json, os, sys
from pathlib import Path
from efficient_vits.training import Options, Recipe, Start, load_data, train

recipe = Recipe(
    name="tiny", epochs=2, warmup_epochs=1, batch_size=224, img_size=32, lr=3e-3, cutmix=0.0,
    drop_path_rate=0.0, three_augment=(), color_jitter=0.0,
)
start = Start(sys.argv[2], json.loads(sys.argv[3]))
train(
    start, load_data("digits"), recipe, Path(sys.argv[1]), cpu=True,
    options=Options(micro_batch=int(sys.argv[4]) or None),
)
"""


def learn(folder, processes, model, arguments, micro):
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--standalone"]
    command = [
        sys.executable, *(launcher if processes > 1 else []), str(folder / "script.py"),
        str(folder / str(processes)), model, json.dumps(arguments), str(micro),
    ]  # fmt: skip
    (folder / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = (folder / str(processes) / "epochs.jsonl").read_text().splitlines()
    return [json.loads(row) for row in rows]


@pytest.mark.parametrize(
    ("model", "arguments", "micro"),
    [
        ("vit_ti16", {"depth": 2, "embed_dim": 32, "num_heads": 2}, 28),
        # Its norms are batch norms, whose statistics are those of both processes.
        ("slab_ti16", {"depth": 2, "embed_dim": 32, "num_heads": 2}, 0),
    ],
)
def test_two_processes_have_the_losses_of_one(model, arguments, micro, tmp_path):
    one, two = (learn(tmp_path, processes, model, arguments, micro) for processes in (1, 2))
    for alone, together in zip(one, two, strict=True):
        assert together["losses"] == pytest.approx(alone["losses"], abs=1e-5)
        assert together["top1"] == pytest.approx(alone["top1"], abs=0.5)
        assert together["gradient_norm"] == pytest.approx(alone["gradient_norm"], rel=1e-3)
