import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efficient_vits.efficiency import tables

HEADERS = ["model", "images/s"]
ROWS = [["vit_s16", "1234"], ["a|b*c`d", "5 [4, 6]"]]


def test_text_is_aligned() -> None:
    assert tables.to_text(HEADERS, ROWS, left=1).splitlines() == [
        "model    images/s",
        "-------  --------",
        "vit_s16      1234",
        "a|b*c`d  5 [4, 6]",
    ]


def test_markdown() -> None:
    assert tables.to_markdown(HEADERS, ROWS, left=1).splitlines() == [
        "| model | images/s |",
        "| --- | ---: |",
        r"| vit\_s16 | 1234 |",
        r"| a\|b\*c\`d | 5 \[4, 6\] |",
    ]


def test_latex() -> None:
    assert tables.to_latex(HEADERS, ROWS, left=1).splitlines() == [
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"model & images/s \\",
        r"\midrule",
        r"vit\_s16 & 1234 \\",
        r"a\textbar{}b*c`d & 5 {[}4, 6] \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_latex_of_every_special_character() -> None:
    assert tables.latex("\\{}%$#&_~^") == (
        r"\textbackslash{}\{\}\%\$\#\&\_\textasciitilde{}\textasciicircum{}"
    )


# The csv module of Python 3.10 reads no zero bytes.
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


@given(st.lists(st.lists(TEXT, min_size=2, max_size=2), min_size=1))
def test_csv_is_read_as_it_was(rows: list[list[str]]) -> None:
    read = list(csv.reader(io.StringIO(tables.to_csv(HEADERS, rows), newline="")))
    assert read == [HEADERS, *([" ".join(cell.split()) for cell in row] for row in rows)]


@given(st.text())
def test_a_cell_stays_one_cell(text: str) -> None:
    (line,) = tables.to_markdown(["a"], [], left=1).splitlines()[:1]
    assert line == "| a |"
    row = tables.to_markdown(["a"], [[text]], left=1).split("\n")[2:]
    assert len(row) == 1
    inner = row[0].removeprefix("| ").removesuffix(" |")
    assert "|" not in inner.replace(r"\\", "").replace(r"\|", "")


@pytest.mark.parametrize("value", [None, 0.1, 7])
def test_csv_has_all_digits(value: object) -> None:
    assert tables.to_csv(["a", "b"], [[value, 1]]).splitlines()[1] == (
        f"{'' if value is None else value},1"
    )
