import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from efficient_vits.plots import FIGURES

ONE = ("--only", "metric_variability")


def test_writes_what_was_asked_for_and_says_so(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    out = tmp_path / "new" / "folder"
    only = (*ONE, "--only", "device_throughput")
    formats = ("--format", "svg,png", "--theme", "light,dark")
    status, text, err = run("figures", "-o", out, *only, *formats)
    assert (status, err) == (0, "")
    names = [
        f"{name}{theme}.{ending}"
        for name in ("metric_variability", "device_throughput")
        for theme in ("", "-dark")
        for ending in ("svg", "png")
    ]
    assert sorted(path.name for path in out.iterdir()) == sorted(names)
    assert [line.split(": ")[0] for line in text.splitlines()] == [str(out / n) for n in names]
    assert "Figure 1, how far repeats" in text
    light, dark = ((out / f"metric_variability{t}.svg").read_text() for t in ("", "-dark"))
    assert "#12161c" in dark
    assert "#12161c" not in light


def test_json_and_the_same_bytes(run_json: Callable[..., Any], tmp_path: Path) -> None:
    rows = [run_json("figures", "-o", tmp_path / name, *ONE) for name in ("a", "b")]
    assert rows[0] == [
        {
            "file": str(tmp_path / "a" / "metric_variability.svg"),
            "name": "metric_variability",
            "figure": 1,
            "shows": FIGURES["metric_variability"].shows,
            "theme": "light",
        }
    ]
    first, second = (Path(row[0]["file"]).read_bytes() for row in rows)
    assert first == second


def test_own_measurements_are_drawn(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    rows = [
        {
            "name": "vit_ti16",
            "parameters": 5717416,
            "flops": {"total": 10**9},
            "memory": None,
            "throughput": {
                "images_per_second": speed, "batch_size": 1, "spread": 0.01, "device": "cpu",
            },
            "input_size": [3, 224, 224],
            "environment": {"cpu": "some processor"},
        }
        for speed in (30.0, 31.0, 33.0)
    ]  # fmt: skip
    own = tmp_path / "own.json"
    own.write_text("\n".join(map(json.dumps, rows)))
    plain, with_own = tmp_path / "plain", tmp_path / "own"
    assert run("figures", "-o", plain, *ONE)[0] == 0
    assert run("figures", "-o", with_own, own, *ONE)[0] == 0
    file = "metric_variability.svg"
    assert (plain / file).read_bytes() != (with_own / file).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "accepted"),
    [
        (("--format", "gif"), "svg, pdf, png"),
        (("--theme", "neon"), "light, dark"),
        (("--only", "pareto"), "throughput_front"),
        (("none.json",), "none.json"),
    ],
)
def test_mistakes(
    arguments: tuple[str, ...], accepted: str, refused: Callable[..., str], tmp_path: Path
) -> None:
    line = refused("figures", "-o", tmp_path / "out", *arguments)
    assert arguments[-1] in line
    assert accepted in line
    assert not (tmp_path / "out").exists()


def test_a_file_is_no_folder(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    assert "out is a file" in refused("figures", "-o", tmp_path / "out", *ONE)
