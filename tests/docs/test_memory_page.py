"""The figures of the memory page follow from the committed rows."""

import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from efficient_vits.results import correlation, load_rows

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "memory.md").read_text(encoding="utf-8")


def read(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DOCS / "data" / name).read_text().splitlines()]


RUNS = read("training_memory.jsonl")
RECORDED = [run for run in RUNS if run["recorded"]]
for run in RUNS:  # the paper's line, "G" being 2^30 in both
    run["line"] = 25.43 * run["flops"] + 25.50 * 2**30
ESTIMATES = read("memory_estimate.jsonl")
WITH_AMX = read("memory_estimate_amx.jsonl")


def ratio(row: dict[str, Any], of: str = "estimated") -> float:
    return row[of] / (row["recorded"] if "recorded" in row else row["measured"])


def summary(of: str) -> str:
    ratios = sorted(ratio(run, of) for run in RECORDED)
    errors = sorted(abs(value - 1) for value in ratios)
    far = sum(max(value, 1 / value) > 1.5 for value in ratios)
    values = [[run[key] for run in RECORDED] for key in (of, "recorded")]
    spearman = correlation(*values, method="spearman").value
    return (
        f"{spearman:.3f} | {errors[len(errors) // 2]:.1%} | "
        f"{ratios[0]:.2f} to {ratios[-1]:.2f} | {far}"
    )


def run_lines() -> list[str]:
    """The table of runs; those with equal figures share a line."""
    lines = Counter()
    for run in RUNS:
        estimated, line = run["estimated"] / 2**30, run["line"] / 2**30
        recorded = f"{run['recorded'] / 2**30:.1f}" if run["recorded"] else "none"
        close = f"{ratio(run):.2f}" if run["recorded"] else ""
        cells = [f"`{run['model']}`", run["img_size"]]
        cells += [f"{run['processes']} x {run['batch_size']}", f"{estimated:.1f}", recorded]
        lines[" | ".join(map(str, [*cells, f"{line:.1f}", close]))] += 1
    return [f"| {line} | {count} |" for line, count in lines.items()]


def models() -> list[str]:
    return list(dict.fromkeys(row["model"] for row in ESTIMATES))


def estimate_line(model: str) -> str:
    cells = [
        f"{row['measured'] / 2**20:.1f} ({ratio(row):.3f})"
        for row in ESTIMATES
        if row["model"] == model
    ]
    return f"| `{model}` | " + " | ".join(cells) + " |"


def named(section: str) -> set[str]:
    """Models that the list of a section names with a cause."""
    text = PAGE.partition(f"## {section}\n")[2].partition("\n## ")[0]
    items = re.findall(r"^- ((?:`\w+`(?:, | and )?)+)", text, re.MULTILINE)
    return {name for item in items for name in re.findall(r"`(\w+)`", item)}


def test_every_run_has_its_row() -> None:
    packaged = [run for run in load_rows() if run.source == "published run records"]
    assert [(run["model"], run["recorded"], run["flops"]) for run in RUNS] == [
        (run.name, run.training_memory, run.flops) for run in packaged
    ]
    assert (len(RUNS), len(RECORDED)) == (90, 89)
    table = PAGE.partition("estimate / recorded | runs |\n")[2]
    assert [line for line in table.splitlines() if line.startswith("| `")] == run_lines()


def test_runs_of_one_network_under_equal_conditions_have_one_estimate() -> None:
    estimates: dict[Any, set[int]] = {}
    for run in RUNS:
        assert run["batch_size"] * run["processes"] == 2048
        key = (run["network"], run["img_size"], run["processes"], run["amp"])
        estimates.setdefault(key, set()).add(run["estimated"])
    assert all(len(same) == 1 for same in estimates.values())


def test_the_summary() -> None:
    assert f"| estimate | {summary('estimated')} |" in PAGE
    assert f"| the paper's line | {summary('line')} |" in PAGE


def test_runs_that_are_far_off_are_named() -> None:
    names = named("Beside the benchmark's training memory")
    assert {run["model"] for run in RECORDED if abs(math.log(ratio(run))) > math.log(1.1)} == names
    assert max(abs(math.log(ratio(run))) for run in RECORDED) < math.log(1.5)
    assert "No run is off by more than 1.5 x" in PAGE


def test_every_estimate_is_in_the_table() -> None:
    settings = {(row["training"], row["batch_size"], row["amp"]) for row in ESTIMATES}
    assert len(settings) == 5
    assert len(ESTIMATES) == 5 * len(models()) >= 50
    for model in models():
        assert estimate_line(model) in PAGE


def test_estimates_are_within_five_per_cent_or_named() -> None:
    far = {row["model"] for row in ESTIMATES if ratio(row) != pytest.approx(1, abs=0.05)}
    assert far == named("Beside the CPU")
    inside = sum(ratio(row) == pytest.approx(1, abs=0.05) for row in ESTIMATES)
    assert f"{inside} of {len(ESTIMATES)}" in PAGE


def test_those_of_another_processor_are_within_five_per_cent_or_in_a_table() -> None:
    far = [row for row in WITH_AMX if ratio(row) != pytest.approx(1, abs=0.05)]
    lines = [
        f"| `{row['model']}`, {'training' if row['training'] else 'inference'}, "
        f"batch {row['batch_size']}, {row['amp'] or 'float32'} | "
        f"{row['measured'] / 2**20:.1f} | {ratio(row):.3f} |"
        for row in far
    ]
    table = PAGE.partition("| with AMX |")[2].partition("\n\n")[0]
    assert [line for line in table.splitlines() if line.startswith("| `")] == lines
    assert f"{len(WITH_AMX) - len(far)} of {len(WITH_AMX)} are within 5 %" in " ".join(PAGE.split())
    # What is estimated does not depend on the processor.
    same = ("model", "training", "batch_size", "amp", "estimated")
    for here, there in zip(ESTIMATES, WITH_AMX, strict=True):
        assert [here[key] for key in same] == [there[key] for key in same]
