import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from efficient_vits.efficiency import compare
from efficient_vits.efficiency.journal import Journal

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    with Journal(path) as journal:
        for name, speed, cpu in (("vit_s16", 100.0, "z80"), ("hydra_s16", 150.0, "6502")):
            journal.append(
                {
                    "key": name,
                    "name": name,
                    "parameters": 20_000_000,
                    "flops": {"total": 4_600_000_000},
                    "memory": None,
                    "throughput": {
                        "images_per_second": speed,
                        "spread": 0.1,
                        "device": "cpu",
                        "interval": [speed - 5, speed + 5],
                        "prediction": [speed - 10, speed + 10],
                    },
                    "input_size": [3, 224, 224],
                    "environment": {"cpu": cpu},
                }
            )
    return path


def test_the_table(rows: Path, run: Run) -> None:
    argv = ("--baseline", "vit_s16", "--across", "machines", "--columns", "parameters,throughput")
    status, out, err = run("compare", rows, *argv)
    assert (status, err) == (0, "")
    header, _, base, other, *notes = out.splitlines()
    assert header.split() == "model cpu parameters (M) ratio images/s ratio".split()  # noqa: SIM905
    assert base.split()[:4] == ["vit_s16", "z80", "20.00", "1.000"]
    assert "150.0 [145.0, 155.0]" in other
    assert notes[0] == "Ratios are relative to vit_s16."
    prediction = run("compare", rows, *argv, "--interval", "prediction")[1]
    assert "150.0 [140.0, 160.0]" in prediction


def test_other_formats(rows: Path, run: Run, run_json: Callable[..., Any]) -> None:
    expected = compare(rows, "vit_s16", columns=["flops"])
    argv = ("compare", rows, "--baseline", "vit_s16", "--columns", "flops")
    for layout, text in (
        ("markdown", expected.to_markdown()),
        ("latex", expected.to_latex()),
        ("csv", expected.to_csv()),
    ):
        assert run(*argv, "--format", layout) == (0, text + "\n", "")
    found = run_json(*argv)
    assert found["entries"][1]["figures"]["flops"]["ratio"] == 1.0
    assert found["baseline"] == "vit_s16"


def test_mistakes(rows: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    line = refused("compare", rows)
    assert "cpu: z80 (vit_s16), 6502 (hydra_s16)" in line
    columns = ("--columns", "flops")
    assert "there are vit_s16, hydra_s16" in refused("compare", rows, *columns, "--baseline", "x")
    assert "accepted are table, markdown" in refused("compare", rows, "--format", "html")
    assert "machines, protocols" in refused("compare", rows, "--across", "hosts")
    assert "no row has a number at 'speed'" in refused("compare", rows, "--columns", "speed")
    assert "nowhere.jsonl" in refused("compare", tmp_path / "nowhere.jsonl")
    own = tmp_path / "own.json"
    own.write_text(json.dumps([{"name": "a"}], indent=2))
    assert "is no sweep's file" in refused("compare", own)
