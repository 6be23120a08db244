import json
import os
from pathlib import Path

import pytest

from efficient_vits.efficiency.journal import (
    Journal,
    JournalError,
    read_parts,
    read_rows,
    write_part,
)

ROWS = [{"key": key, "name": name} for key, name in (("a", "one"), ("b", "zwei ä"), ("c", "three"))]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "rows.jsonl"


def filled(path: Path) -> bytes:
    with Journal(path) as journal:
        for row in ROWS:
            journal.append(row)
    return path.read_bytes()


def test_rows_are_lines(path: Path) -> None:
    assert [json.loads(line) for line in filled(path).splitlines()] == ROWS
    assert read_rows(path) == ROWS


def test_a_file_cut_anywhere_loses_one_row_at_most_and_doubles_none(path: Path) -> None:
    whole = filled(path)
    for end in range(len(whole) + 1):
        path.write_bytes(whole[:end])
        complete = [row for row in ROWS if json.dumps(row).encode() in whole[:end]]
        assert read_rows(path) == complete
        with Journal(path) as journal:
            assert list(journal.rows.values()) == complete
            for row in ROWS:
                if row["key"] not in journal.rows:
                    journal.append(row)
        assert path.read_bytes() == whole, end


def test_zeros_of_a_power_cut_are_cut(path: Path) -> None:
    whole = filled(path)
    for end in (b"\0" * 40, whole[:12] + b"\0" * 40):
        path.write_bytes(whole + end)
        with Journal(path) as journal:
            assert list(journal.rows.values()) == ROWS
        assert path.read_bytes() == whole


def test_the_last_row_of_a_key_counts(path: Path) -> None:
    filled(path)
    with Journal(path) as journal:
        journal.append({"name": "again", "key": "a"})
        assert journal.rows["a"]["name"] == "again"
    assert [row["name"] for row in read_rows(path)] == ["again", "zwei ä", "three"]
    assert path.read_text().count("\n") == 4


@pytest.mark.parametrize(
    "content", ["hello", "hello\n", '{"key": 1}\n', "[1]\n", '{"name": "x"}', '{"key": "a"}\n\nx']
)
def test_a_file_of_somebody_else_is_refused_and_left_alone(path: Path, content: str) -> None:
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(JournalError, match=r"rows\.jsonl is no sweep's file"):
        Journal(path)
    assert path.read_text() == content
    with pytest.raises(JournalError):
        read_rows(path)


def test_one_writer_at_a_time(path: Path) -> None:
    with Journal(path) as journal:
        # A lock belongs to the opened file and not to the process, so that one process will do.
        with pytest.raises(JournalError, match="being written by another sweep"):
            Journal(path)
        journal.append(ROWS[0])
        assert read_rows(path) == ROWS[:1]
    with Journal(path) as journal:
        assert journal.rows == {"a": ROWS[0]}


def test_a_full_disk_leaves_no_part_of_a_row(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = filled(path)
    with Journal(path) as journal:
        write = os.write
        monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:9]))
        with pytest.raises(OSError, match="No space left"):
            journal.append({"key": "d"})
        assert "d" not in journal.rows
    assert path.read_bytes() == whole


def test_parts_are_whole(tmp_path: Path) -> None:
    write_part(tmp_path, ROWS[0])
    write_part(tmp_path, {**ROWS[0], "name": "later"})
    (tmp_path / "b.host.7.draft").write_text('{"ke')
    assert [(path.name, row["name"]) for path, row in read_parts(tmp_path)] == [("a.json", "later")]
