"""The page on short trainings has the tables of the rows beside it."""

import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from efficient_vits import catalog
from efficient_vits.training import preset

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "learning.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def generated() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS))
        import generated_learning

        return generated_learning


@pytest.fixture
def rows(generated: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """Rows in place of the real ones: two seeds, of which one was stopped early."""
    rows = [
        {
            "model": "performer_ti16",
            "without": [],
            "settings": {},
            "arguments": {},
            "seed": seed,
            "top1": [10.0] * (epochs - 1) + [top1],
            "losses": {"task": [2.0] * epochs},
            "largest_token": [3.0, 20.0 + seed],
            "gradients": [[0.5, 2.0], [0.1, 4.0 + seed]],
            "smallest_normaliser": 0.25 / (1 + seed),
        }
        for seed, epochs, top1 in ((0, 90, 98.0), (1, 30, 94.0))
    ]
    rows[0]["top1"][29] = 90.0
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(generated, "ROWS", path)
    return rows


def test_every_table_is_on_the_page_once(generated: ModuleType) -> None:
    used = re.findall(r"^```\{learning-table\} (\S+)$", PAGE, re.MULTILINE)
    assert sorted(used) == sorted(generated.TABLES)


def test_epochs_rate_and_clipping_are_those_of_the_preset(generated: ModuleType) -> None:
    assert preset("digits").epochs == generated.WHOLE
    assert preset("digits").lr == generated.RATE
    assert preset("digits").clip_grad == 1.0  # "at norm 1"
    assert f"{generated.SHORT} of the {generated.WHOLE} epochs" in PAGE


def test_means_and_ranges(generated: ModuleType, rows: list[dict]) -> None:
    *_, line = generated.classes().splitlines()
    assert line == "| Kernel Attention | `performer_ti16` | 92.0 % (2 seeds, 90.0 to 94.0) |"


def test_extremes(generated: ModuleType, rows: list[dict]) -> None:
    *_, line = generated.untrained().splitlines()
    assert line == (
        "| `performer_ti16` | 92.0 % (2 seeds, 90.0 to 94.0) | 98.0 % (1 seed) | 21 | 0.1 to 5 | "
        "0.12 |"
    )


def test_tokens_are_those_of_the_epoch_that_is_named(
    generated: ModuleType, rows: list[dict]
) -> None:
    for row, count in zip(rows, (0.5, 3.0), strict=True):
        row |= {"model": "avit_ti16", "tokens": [16.0, *[count] * 11]}
    generated.ROWS.write_text("".join(json.dumps(row) + "\n" for row in rows))
    *_, short, whole = generated.halting().splitlines()
    assert short == "| 0.003 | 30 | 94.0 % (1 seed) | 3.0 | 3.0 | 3.0 | 3.0 |"
    assert whole == "| 0.003 | 90 | 98.0 % (1 seed) | 0.5 | 0.5 | 0.5 | 0.5 |"


def test_a_model_of_every_class_with_three_seeds(generated: ModuleType) -> None:
    wanted = {
        card.taxonomy_class
        for card in catalog.cards().values()
        if card.taxonomy_class and card.name != "resnet50"  # no transformer
    }
    found = [line.split("|") for line in generated.classes().splitlines()]
    assert {cells[1].strip() for cells in found if "(3 seeds, " in cells[-2]} == wanted


def test_what_the_benchmark_could_not_train_to_the_end_with_three_seeds(
    generated: ModuleType,
) -> None:
    _, _, *lines = generated.untrained().splitlines()
    assert len(lines) == len(generated.UNTRAINED)
    for line in lines:
        assert "(3 seeds, " in line.split("|")[3]


@pytest.mark.parametrize(("table", "accuracies"), [("clipping", 2), ("halting", 1), ("halonet", 1)])
def test_what_was_varied_has_three_seeds(
    generated: ModuleType, table: str, accuracies: int
) -> None:
    _, _, *lines = generated.TABLES[table]().splitlines()
    assert len(lines) > 1
    for line in lines:
        assert line.count("(3 seeds, ") == accuracies


def test_every_row_is_in_a_table(generated: ModuleType) -> None:
    text = "\n".join(table() for table in generated.TABLES.values())
    for row in generated._rows():
        name, without = row["model"], row["without"]
        assert f"`{name}`" in text
        assert row["settings"].keys() <= {"clip_grad", "lr"}
        assert not without or f"| {' and '.join(without)} |" in text
