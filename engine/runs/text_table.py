"""Columns of text for the terminal."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

LONGEST = 40
"""Columns of the terminal that a cell may take."""


def text_table(heads: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Rows under a line of heads, two spaces between columns; the first `left` columns flush left, numbers right.

    Raises ValueError where a row has not one cell a head.
    """
    lines = [[clip(cell) for cell in line] for line in [heads, *rows]]
    if any(len(line) != len(heads) for line in lines):
        raise ValueError(f"every row needs {len(heads)} cells")
    widths = [max(width(line[place]) for line in lines) for place in range(len(heads))]
    padded = []
    for line in lines:
        cells = []
        for place, cell in enumerate(line):
            space = " " * (widths[place] - width(cell))
            cells.append(cell + space if place < left else space + cell)
        padded.append("  ".join(cells).rstrip())
    return "\n".join(padded)


def width(text: str) -> int:
    """Columns that `text` takes: East Asian wide signs two, combining signs none."""
    return sum(
        0 if unicodedata.combining(sign) else 2 if unicodedata.east_asian_width(sign) in "WF" else 1 for sign in text
    )


def clip(text: str) -> str:
    """`text` on one line, without control signs (a name may hold escape sequences), cut to LONGEST columns."""
    text = "".join(sign if sign.isprintable() else "�" for sign in text)
    if width(text) <= LONGEST:
        return text
    while width(text) > LONGEST - 1:
        text = text[:-1]
    return text + "…"
