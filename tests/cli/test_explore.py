import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROW: dict[str, Any] = {
    "name": "hydra_s16",
    "parameters": 22_059_496,
    "flops": {"total": 4_287_964_032},
    "throughput": {
        "images_per_second": 2500.0,
        "spread": 0.01,
        "batch_size": 64,
        "device": "cuda:0",
    },
    "input_size": [3, 224, 224],
    "environment": {"device": "NVIDIA GeForce RTX 3090", "cpu": "a processor"},
}


def data_of(page: Path) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text())
    assert found
    return json.loads(found[1])


def test_says_where_the_page_lies_and_how_large(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    page = tmp_path / "runs.html"
    status, out, err = run("explore", "-o", page)
    assert (status, err) == (0, "")
    megabytes = page.stat().st_size / 1e6
    assert out == f"{page}: 105 runs of the benchmark, {megabytes:.1f} MB\n"
    assert len(data_of(page)["runs"]) == 105


def test_shows_own_measurements_and_says_what_was_left_out(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    first, second, page = tmp_path / "a.json", tmp_path / "b.jsonl", tmp_path / "runs.HTML"
    first.write_text(json.dumps([ROW, {"name": "vit_l16", "error": "too\nlarge"}]))
    second.write_text(json.dumps(ROW | {"top1": 70.5}) + "\n")
    status, out, err = run("explore", first, second, "--output", page)
    assert status == 0
    assert "105 runs of the benchmark, 2 own, " in out
    assert err == "left out, not measured: vit_l16: too large\n"
    own = data_of(page)["runs"][105:]
    assert [(row["label"], row["device_class"]) for row in own] == [("hydra_s16", "RTX 3090")] * 2
    # The benchmark's accuracy where there is no own one, which the page says.
    assert [row["values"][0] for row in own] == [77.84, 70.5]
    assert [row["notes"] for row in own] == [["top1: published for this model and size"], []]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["-o", "{}/page.txt"], "page.txt is none of .html, .htm"),
        (["-o", "{}/nowhere/page.html"], "there is no folder"),
        (["-o", "{}/folder.html"], "folder.html"),
        (["{}/none.json", "-o", "{}/page.html"], "none.json"),
        (["{}/broken.json", "-o", "{}/page.html"], "broken.json is neither JSON nor"),
        (["{}/slow.json", "-o", "{}/page.html"], "has throughput 0; accepted is positive"),
        ([], "Missing option '--output'"),
    ],
)
def test_refuses(
    refused: Callable[..., str], tmp_path: Path, arguments: list[str], complaint: str
) -> None:
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "broken.json").write_text("{")
    slow = ROW | {"throughput": ROW["throughput"] | {"images_per_second": 0}}
    (tmp_path / "slow.json").write_text(json.dumps(slow))
    assert complaint in refused("explore", *(part.format(tmp_path) for part in arguments))
    assert not (tmp_path / "page.html").exists()
    assert not list(tmp_path.glob(".*"))


def test_without_plotly(
    refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    line = refused("explore", "-o", tmp_path / "page.html")
    assert "needs plotly: pip install 'efficient-vits[plots]'" in line
