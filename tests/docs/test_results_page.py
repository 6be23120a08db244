"""The tables of the results page come from the data, and the page uses all of them."""

import re
from pathlib import Path
from types import ModuleType

import pytest

from efficient_vits import results

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "results.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def generated() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS))
        import generated_results

        return generated_results


def test_every_table_is_on_the_page_once(generated: ModuleType) -> None:
    used = re.findall(r"^```\{results-table\} (\S+)$", PAGE, re.MULTILINE)
    assert sorted(used) == sorted(generated.TABLES)


def test_tables_have_rows_of_one_width(generated: ModuleType) -> None:
    for name, table in generated.TABLES.items():
        header, rule, *rows = table().splitlines()
        assert rows, name
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in (header, rule, *rows)}
        assert len(widths) == 1, name


def test_the_page_itself_has_no_tables_and_no_figures_of_runs() -> None:
    prose = re.sub(r"^```.*?^```$", "", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert not [line for line in prose.splitlines() if line.startswith("|")]
    assert re.findall(r"\d+\.\d{2,}", re.sub(r"arxiv\S+|arXiv \S+", "", prose)) == []


def test_misprints(generated: ModuleType) -> None:
    table = generated.misprints()
    for printed, recorded in (("3404.60", "5404.60"), ("3538.89", "5358.89"), ("5.94", "4.94")):
        assert f"| {printed} | {recorded} |" in table


def test_every_statement_is_in_one_of_two_tables(generated: ModuleType) -> None:
    confirmed, other = generated.TABLES["confirmed"](), generated.TABLES["not-confirmed"]()
    statements = results.check_statements()
    for checked in statements:
        row = f"| {checked.section} | {checked.statement} |"
        assert (row in confirmed) == (checked.verdict == "confirmed")
        assert (row in other) == (checked.verdict != "confirmed")
        assert checked.paper in confirmed + other
    assert len(statements) == len((confirmed + "\n" + other).splitlines()) - 4


def test_the_memory_model(generated: ModuleType) -> None:
    rows = generated.memory_model().splitlines()
    assert rows[2].startswith("| slope [GB per GFLOP] | 25.43 |")
    assert rows[3].startswith("| intercept [GiB] | 25.50 |")
    assert rows[2].endswith("| 25.43 |")
