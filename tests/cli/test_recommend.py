import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from efficient_vits import results


def test_the_answer_is_that_of_the_function(run_json: Callable[..., Any]) -> None:
    answer = results.recommend(accuracy=">=80", memory="<1 GiB", limit=3)
    found = run_json("recommend", "--accuracy", ">=80", "--memory", "<1 GiB", "--limit", "3")
    assert [row["name"] for row in found["choices"]] == [c.run.name for c in answer.choices]
    assert len(found["choices"]) == 3
    first = found["choices"][0]
    assert first["reasons"] == list(answer.choices[0].reasons)
    assert first["source"] == answer.choices[0].run.source
    assert found["constraints"] == ["accuracy >= 80", "memory < 1 GiB"]
    assert (found["eligible"], found["considered"]) == (answer.eligible, answer.considered)


def test_all_bounds_and_preferences_are_passed_on(run_json: Callable[..., Any]) -> None:
    bounds = {
        "accuracy": ">70",
        "throughput": ">100",
        "memory": "<9 GiB",
        "params": "<90M",
        "flops": "<19G",
        "training_time": "<200 h",
        "training_memory": "<900 GiB",
    }
    options = [part for k, v in bounds.items() for part in (f"--{k.replace('_', '-')}", v)]
    prefer = ["--prefer", "params", "--prefer", "accuracy"]
    found = run_json("recommend", *options, *prefer, "--device", "A100")
    assert [text.split()[0] for text in found["constraints"]] == list(bounds)
    assert found["prefer"] == ["params", "accuracy"]
    parameters = [row["parameters"] for row in found["choices"]]
    assert parameters == sorted(parameters)
    assert parameters


def test_the_text(run: Callable[..., tuple[int, str, str]]) -> None:
    status, out, err = run("recommend", "--params", "<6M")
    assert (status, err) == (0, "")
    assert out == f"{results.recommend(params='<6M')}\n"


def test_nothing_keeps_the_bounds(run: Callable[..., tuple[int, str, str]]) -> None:
    status, out, err = run("recommend", "--params", "<1M")
    assert (status, err) == (1, "")
    assert "without params < 1 M: efficientformerv2_s0" in out


def test_own_measurements(tmp_path: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    rows = [
        {
            "name": name,
            "parameters": 10**7,
            "flops": {"total": 10**9},
            "memory": None,
            "throughput": {
                "images_per_second": speed,
                "batch_size": 1,
                "spread": 0.01,
                "device": "cpu",
            },
            "input_size": [3, 224, 224],
            "environment": {"cpu": "some processor"},
        }
        for name, speed in (("vit_s16", 10.0), ("hydra_s16", 9.0), ("vit_ti16", 30.0))
    ]
    path = tmp_path / "own.json"
    path.write_text(json.dumps([*rows, {"name": "vit_l16", "error": "too large"}]))
    status, out, err = run("recommend", path, "--accuracy", ">=70", "--json")
    assert (status, err) == (0, "left out, not measured: vit_l16: too large\n")
    found = json.loads(out)
    assert [row["name"] for row in found["choices"]] == ["vit_ti16", "vit_s16"]
    assert found["considered"] == 3
    assert found["choices"][0]["device"] == "some processor"
    assert found["choices"][0]["source"] == str(path)


@pytest.mark.parametrize(
    ("arguments", "accepted"),
    [
        (("--accuracy", "high"), "a number after >="),
        (("--memory", "1 XB"), "GiB"),
        (("--prefer", "speed"), "throughput"),
        (("--device", "H100"), "A100"),
        (("--limit", "0"), "1, 2, 3"),
        (("none.json",), "none.json"),
    ],
)
def test_mistakes(arguments: tuple[str, ...], accepted: str, refused: Callable[..., str]) -> None:
    line = refused("recommend", *arguments)
    assert arguments[-1] in line
    assert accepted in line
