"""The benchmarks run, at their smallest; what they measure is not asserted here."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SMALL = {
    "import_time.py": (["--repeats", "1"], r"import efficient_vits +[+-]\d+\.\d+ s"),
    "models.py": (
        ["vit_ti16", "--rounds", "1", "--batch-size", "1", "--seconds", "0.01"],
        r"vit_ti16 +[\d.]+ +\d+\.\d\d",
    ),
    "mixers.py": (
        ["hydra", "--rounds", "1", "--batch-size", "1", "--seconds", "0.01"],
        r"hydra +5,721,832 +1\.100 +[\d.]+ +\d+\.\d\d",
    ),
    "reductions.py": (
        ["tome_ti16_r8", "--rounds", "1", "--batch-sizes", "1", "--seconds", "0.01"],
        r"tome_ti16_r8 +101 +0\.95 +1 +[\d.]+ +\d+\.\d\d",
    ),
    "fuse.py": (
        ["repvgg_a0", "--rounds", "1", "--batch-size", "1", "--seconds", "0.01"],
        r"repvgg_a0 +[\d.]+ M -> [\d.]+ M +[\d.]+ -> [\d.]+ +\d+\.\d\d",
    ),
    "repeatability.py": (
        ["test_vit", "--runs", "2", "--batch-size", "1", "--seconds", "0.01"],
        r"[01] of 1 repeats inside [\d.]+ to [\d.]+ images/s",
    ),
    "training.py": (
        ["vit_ti16", "--baseline=vit_tiny_patch16_224", "--img-size=32", "--rounds=1"],
        r"ours: vit_ti16 +[\d.]+ +\d+\.\d\d",
    ),
    "digits.py": (["hydra", "--epochs", "1"], r"hydra +0 +\d+\.\d%"),
    "convergence.py": (
        ["hydra_ti16", "--epochs=1", "--output={folder}", "--own", "depth=1", "num_heads=2"],
        r'"model": "hydra_ti16", .*"top1": \[\d+\.\d+\], .*"largest_token": \[\d',
    ),
    "attention_scaling.py": (
        ["hydra", "--largest", "32", "--seconds", "0.01", "--figure", "{folder}/figure.svg"],
        r"hydra +N +\S+ +\S+ +196: [\d.]+  1024: [\d.]+",
    ),
    "memory_estimate.py": (
        ["test_vit"],
        r"test_vit +training +batch 4 bfloat16 +[\d.]+ MiB, measured +[\d.]+",
    ),
    "training_memory.py": (["fnet_s16"], r"fnet_s16 +224 4 x 512 +[\d.]+ GiB"),
}


def test_every_benchmark_is_run():
    assert {path.name for path in BENCHMARKS.glob("*.py")} == set(SMALL)


@pytest.mark.parametrize("name", SMALL)
def test_runs(name, tmp_path):
    arguments, pattern = SMALL[name]
    arguments = [argument.replace("{folder}", str(tmp_path)) for argument in arguments]
    command = [sys.executable, str(BENCHMARKS / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(pattern, done.stdout), done.stdout
    if "--figure" in arguments:
        assert "<svg" in (tmp_path / "figure.svg").read_text()
