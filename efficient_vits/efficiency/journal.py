"""An append-only file of rows, one JSON object per line, that survives being killed at any point.

A row is written by one `write` of its whole line and forced to the disk. Whoever is killed in
between leaves a last line without its end; the next who opens the file completes it where nothing
but the end is missing, and cuts it otherwise. Rows have a key; the last row of a key counts.
"""

import errno
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

Row = dict[str, Any]

_OPENING = b'{"key": '


class JournalError(ValueError):
    """A file that is no sweep's, or that another sweep is writing."""


class Journal:
    """The rows of a file, open for one writer.

    Args:
        path: made, with its folders, if it is not there.

    Raises:
        JournalError: another process is writing the file, or it is not one of these files. It is
            not touched then.
        OSError: it cannot be read or written, or the system cannot lock files.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            self._lock()
            self.rows = self._recover()
            _sync_folder(self.path.parent)
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Closing gives the lock back, as the end of the process does in any case.
        os.close(self._file)

    def append(self, row: Mapping[str, Any]) -> None:
        """Adds a row, which has been written to the disk when this returns.

        Raises:
            OSError: the disk is full, for instance; the file has no part of the row then.
        """
        line = (json.dumps({"key": row["key"], **row}) + "\n").encode()
        end = os.fstat(self._file).st_size
        try:
            written = os.write(self._file, line)
            if written != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            os.fsync(self._file)
        except OSError:
            os.ftruncate(self._file, end)
            raise
        self.rows[row["key"]] = json.loads(line)

    def _lock(self) -> None:
        import fcntl  # not on Windows, where the rest of the package works

        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise JournalError(f"{self.path} is being written by another sweep") from None

    def _recover(self) -> dict[str, Row]:
        content = self.path.read_bytes()
        rows, rest = _parse(content, self.path)
        if rest:
            if _is_row(rest):
                os.write(self._file, b"\n")
            else:
                os.ftruncate(self._file, len(content) - len(rest))
            os.fsync(self._file)
        return rows


def read_rows(path: str | os.PathLike[str]) -> list[Row]:
    """The rows of a sweep's file, the last of each key, in the order of their first.

    Reading needs no lock: a last line that is not complete yet is left out.

    Raises:
        JournalError: it is no sweep's file.
        OSError: it cannot be read.
    """
    path = Path(path)
    return list(_parse(path.read_bytes(), path)[0].values())


def write_part(folder: Path, row: Mapping[str, Any]) -> None:
    """Leaves a row in a file of its own, which is there as a whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    # Two processes with the same job don't write one file.
    draft = folder / f"{row['key']}.{os.uname().nodename}.{os.getpid()}.draft"
    with open(draft, "w", encoding="utf-8") as file:
        json.dump(row, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, part_path(folder, row["key"]))
    _sync_folder(folder)


def part_path(folder: Path, key: str) -> Path:
    return folder / f"{key}.json"


def read_parts(folder: Path) -> Iterable[tuple[Path, Row]]:
    """Rows that were left in files of their own, with these."""
    for path in sorted(folder.glob("*.json")):
        yield path, json.loads(path.read_text(encoding="utf-8"))


def _parse(content: bytes, path: Path) -> tuple[dict[str, Row], bytes]:
    """Rows by key, and what stands behind the last end of a line."""
    *lines, rest = content.split(b"\n")
    rows: dict[str, Row] = {}
    for number, line in enumerate(lines, 1):
        if not _is_row(line):
            raise JournalError(
                f"{path} is no sweep's file: line {number} is no JSON object with a key"
            )
        row = json.loads(line)
        rows[row["key"]] = row
    if _is_row(rest):
        row = json.loads(rest)
        rows[row["key"]] = row
    elif not _may_be_torn(rest):
        raise JournalError(f"{path} is no sweep's file: its last line is no part of a row")
    return rows, rest


def _is_row(line: bytes) -> bool:
    try:
        row = json.loads(line)
    except ValueError:
        return False
    return isinstance(row, dict) and isinstance(row.get("key"), str)


def _may_be_torn(rest: bytes) -> bool:
    """Whether this can be the beginning of a row; after a power cut, zeros may stand for it."""
    start = rest[: len(_OPENING)].rstrip(b"\0")
    return _OPENING.startswith(start)


def _sync_folder(folder: Path) -> None:
    """A new file is safe only when its folder has been written too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
