"""JSON Lines that a kill at any moment leaves readable: one object a line, appended whole."""

from __future__ import annotations

import json
import logging
import math
import os
from pathlib import Path
from typing import Any

logger = logging.getLogger("hcr")


class RecordWriter:
    """Appends one JSON object a line. Every row is one `write` call, so a kill tears at most the last line.

    A torn last line that an earlier writer left is cut off on opening; one writer a file at a time. Raises OSError.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        mend(self.path)
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)

    def write(self, row: dict[str, Any]) -> None:
        """Append `row`. Numbers that JSON does not have (NaN, infinities) are written as null.

        A file name that is no text is written by JSON's escapes, and read back as it was.
        """
        text = json.dumps(finite(row), ensure_ascii=False, default=plain)
        line = memoryview(f"{text}\n".encode(errors="backslashreplace"))
        while line:
            line = line[os.write(self._descriptor, line) :]

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_records(path: Path) -> list[dict[str, Any]]:
    """All rows of a JSON Lines file in order; none where there is no file.

    Lines that are not a whole JSON object are left out: a kill tears the last one, and a session that goes on after it
    leaves the torn line in the middle. Each is named in the log.
    """
    path = Path(path)
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        row = parse(line)
        if row is not None:
            rows.append(row)
        elif line.strip():
            logger.info("%s:%d is not a whole row; left out", path, number)
    return rows


def parse(line: bytes) -> dict[str, Any] | None:
    """The JSON object on a line, or None where it holds no whole one."""
    try:
        row = json.loads(line)
    except ValueError:  # covers JSONDecodeError and UnicodeDecodeError
        return None
    return row if isinstance(row, dict) else None


def mend(path: Path) -> None:
    """Cut a torn last line off a JSON Lines file, or end a whole one with its newline."""
    if not path.is_file() or path.stat().st_size == 0:
        return
    with path.open("r+b") as file:
        content = file.read()
        start = content.rfind(b"\n") + 1
        if start == len(content):
            return
        if parse(content[start:]) is None:
            file.truncate(start)
        else:
            file.seek(0, os.SEEK_END)
            file.write(b"\n")


def finite(value: Any) -> Any:
    """`value` with every float that is not finite, at any depth, replaced by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def plain(value: Any) -> Any:
    """A value that json does not know: numpy and torch scalars by `.item()`, anything else as text."""
    return finite(value.item()) if hasattr(value, "item") else str(value)
