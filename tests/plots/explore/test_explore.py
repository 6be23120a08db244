"""The file that is written."""

import stat
import sys

import pytest

from efficient_vits.plots import explore
from efficient_vits.results import load_rows, load_runs


def test_writes_one_file_and_returns_its_path(tmp_path):
    path = explore(str(tmp_path / "page.html"))
    assert path == tmp_path / "page.html"
    assert list(tmp_path.iterdir()) == [path]
    other = tmp_path / "other"
    other.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(other.stat().st_mode)


def test_a_frame_gives_the_same_page_as_rows(tmp_path):
    first = explore(tmp_path / "a.html", load_rows())
    second = explore(tmp_path / "b.html", load_runs())
    assert first.read_bytes() == second.read_bytes()


def test_an_old_page_is_replaced_only_by_a_whole_one(tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    path.write_text("old")
    with pytest.raises(ValueError, match="no run"):
        explore(path, [])
    assert path.read_text() == "old"
    monkeypatch.setattr("pathlib.Path.replace", _disk_full)
    with pytest.raises(OSError, match="full"):
        explore(path)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text() == "old"
    monkeypatch.undo()
    explore(path)
    assert path.read_text().startswith("<!doctype html>")


def _disk_full(*arguments):
    raise OSError("full")


def test_without_plotly(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(ImportError, match=r"needs plotly: pip install 'efficient-vits\[plots\]'"):
        explore(tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []
