"""The figures of the memory page follow from the committed rows."""

import json
from pathlib import Path

from efficient_vits.results import correlation

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "memory.md").read_text(encoding="utf-8")
ROWS = [json.loads(line) for line in (DOCS / "data/training_memory.jsonl").read_text().splitlines()]


def line(row: dict) -> float:
    """The paper's line, "G" being 2^30 in both."""
    return 25.43 * row["flops"] + 25.50 * 2**30


def summary(estimates: list[float]) -> str:
    recorded = [row["recorded"] for row in ROWS]
    ratios = sorted(e / r for e, r in zip(estimates, recorded, strict=True))
    errors = sorted(abs(ratio - 1) for ratio in ratios)
    far = sum(max(ratio, 1 / ratio) > 1.5 for ratio in ratios)
    spearman = correlation(estimates, recorded, method="spearman").value
    return (
        f"{spearman:.3f} | {errors[len(errors) // 2]:.1%} | "
        f"{ratios[0]:.2f} to {ratios[-1]:.2f} | {far}"
    )


def test_the_summary() -> None:
    assert f"| estimate | {summary([row['estimated'] for row in ROWS])} |" in PAGE
    assert f"| the paper's line | {summary([line(row) for row in ROWS])} |" in PAGE
    assert f"{len(ROWS)} of 54" in PAGE


def test_every_row() -> None:
    for row in ROWS:
        gib = [value / 2**30 for value in (row["estimated"], row["recorded"], line(row))]
        cells = [f"`{row['model']}`", row["img_size"], f"{row['processes']} x {row['batch_size']}"]
        cells += [*(f"{value:.1f}" for value in gib), f"{gib[0] / gib[1]:.2f}"]
        assert "| " + " | ".join(map(str, cells)) + " |" in PAGE
