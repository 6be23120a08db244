"""Tables of measurements say what the rows beside them say."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from efficient_vits.attention import list_attentions

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "token_mixing.md").read_text(encoding="utf-8")


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DOCS / "data" / name).read_text().splitlines()]


def cells(first: str, columns: int) -> list[str]:
    """The only row of the page with so many columns that begins with this cell."""
    lines = [line for line in PAGE.splitlines() if line.startswith(f"| {first} |")]
    split = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    (found,) = [row for row in split if len(row) == columns]
    return found


def test_every_mixer_is_in_the_tables_with_its_figures() -> None:
    accuracies = defaultdict(list)
    for row in rows("digits.jsonl"):
        accuracies[row["attention"]].append(f"{row['accuracy']:.1%}")
    measured = {row["attention"]: row for row in rows("mixers.jsonl")}
    assert sorted(accuracies) == sorted(measured) == list_attentions()
    for name, row in measured.items():
        _, accuracy, _, _, parameters, gflops, speed = cells(name, 7)
        assert accuracy == ", ".join(accuracies[name])
        assert parameters == f"{row['parameters']:,}"
        assert gflops == f"{row['flops'] / 1e9:.3f}"
        assert speed == f"{row['ratio']:.2f}"


def test_every_mixer_has_its_times() -> None:
    times: dict[str, dict[int, float]] = defaultdict(dict)
    for row in rows("attention_scaling.jsonl"):
        times[row["attention"]][row["tokens"]] = row["milliseconds"]
    assert sorted(times) == list_attentions()
    for name, by_size in times.items():
        *_, small, large = cells(name, 6)
        assert small == f"{by_size[196]:.2f}"
        assert large == (f"{by_size[16384]:,.0f}" if 16384 in by_size else "")


def test_the_repeats_are_those_of_the_rows() -> None:
    page = (DOCS / "timing.md").read_text(encoding="utf-8")
    by_length = defaultdict(list)
    for row in rows("repeatability.jsonl"):
        by_length[row["seconds"]].append(row["throughput"])
    assert len(by_length) == 2
    for seconds, runs in by_length.items():
        speeds = [run["images_per_second"] for run in runs]
        inside = [
            [low <= speed <= high for j, speed in enumerate(speeds) if j != i]
            for i, (low, high) in enumerate(run["prediction"] for run in runs)
        ]
        low, high = runs[0]["prediction"]
        line = (
            f"| {seconds:.0f} | {speeds[0]:.1f} | {low:.1f} to {high:.1f} | "
            f"{min(speeds[1:]):.1f} to {max(speeds[1:]):.1f} | {sum(inside[0])} | "
            f"{sum(map(sum, inside))} of {sum(map(len, inside))} |"
        )
        assert line in page
