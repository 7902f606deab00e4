"""The leaderboard as a page that sorts itself, as Markdown, as CSV, and as text for a terminal of 80 columns."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from engine.report.arch_table import markdown
from engine.report.leaderboard import HEADS, Line, cell
from engine.report.sorted_table import Head, sorted_table
from engine.runs.door import atomic_file
from engine.runs.history import NotARun
from engine.runs.text_table import text_table

TERMINAL = ("network", "theirs", "ours", "parameters", "image_size", "epochs", "images_per_second", "peak_memory_bytes")
"""Columns that 80 characters have room for."""
NUMERIC = ("theirs", "ours", "parameters", "multiply_adds", "image_size", "batch", "images_per_second")
NUMERIC += ("peak_memory_bytes", "joules_per_image", "seed")
SHORT_HEADS = {"image_size": "px", "images_per_second": "img/s", "peak_memory_bytes": "memory", "parameters": "params"}


def terminal_table(lines: Sequence[Line]) -> str:
    """The columns of TERMINAL; names that are long are cut."""
    heads = dict(HEADS) | SHORT_HEADS
    rows = []
    for line in lines:
        cells = [cell(line, field) for field in TERMINAL]
        cells[0] = cells[0] if len(cells[0]) <= 20 else cells[0][:19] + "…"
        cells[5] = cells[5].replace(" of ", "/")
        rows.append(cells)
    return text_table([heads[field] for field in TERMINAL], rows)


def as_markdown(lines: Sequence[Line]) -> str:
    """All columns; a bar in a command does not end its cell."""
    rows = [[_escaped(cell(line, field), field) for field, _ in HEADS] for line in lines]
    return markdown([head for _, head in HEADS], rows) + "\n"


def _escaped(text: str, field: str) -> str:
    text = text.replace("|", "\\|").replace("\n", " ")
    return f"`{text}`" if field == "command" and text else text


def as_csv(lines: Sequence[Line]) -> str:
    """All fields by their names, numbers as they are and without units."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(field for field, _ in HEADS)
    for line in lines:
        values = (getattr(line, field) for field, _ in HEADS)
        writer.writerow("" if value is None else value for value in values)
    return buffer.getvalue()


def read_csv(path: Path) -> list[Line]:
    """The lines of a leaderboard that `as_csv` wrote. Raises NotARun where the file is none."""
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
    except (OSError, UnicodeError, csv.Error) as error:
        raise NotARun(f"{path}: cannot be read as a leaderboard: {error}") from error
    if not rows or any(set(row) != {field for field, _ in HEADS} or None in row.values() for row in rows):
        raise NotARun(f"{path}: not the CSV of a leaderboard")
    try:
        return [
            Line(**{field.name: _value(str(field.type), row[field.name]) for field in fields(Line)}) for row in rows
        ]
    except (TypeError, ValueError) as error:
        raise NotARun(f"{path}: not the CSV of a leaderboard: {error}") from error


def _value(kind: str, text: str) -> Any:
    """A cell as its field's type; a field that also takes text (a size of two sides) keeps what is no number."""
    if kind == "str":
        return text
    if not text:
        return None
    if "int" in kind and not ("str" in kind and not text.isdecimal()):
        return int(text)
    return text if "str" in kind else float(text)


def as_page(lines: Sequence[Line]) -> str:
    """One HTML page that needs nothing but itself."""
    run = [line for line in lines if line.run]
    compared = [line.ours > line.theirs for line in run if line.ours is not None and line.theirs is not None]
    intro = (
        f"{len(run)} runs; {sum(compared)} of the {len(compared)} on CIFAR-10 that have a figure beside them are above "
        "it. “theirs” is the learning repository's own: CIFAR-10, 10 epochs, batch 128, 224 px. What was not run is "
        "empty."
    )
    heads = [Head(head, field in NUMERIC, field == "command") for field, head in HEADS]
    rows = [[(cell(line, field), getattr(line, field)) for field, _ in HEADS] for line in lines]
    return sorted_table("Leaderboard", intro, heads, rows)


def write_leaderboard(lines: Sequence[Line], folder: Path) -> list[Path]:
    """Write `folder`/leaderboard.html, .md and .csv, each in one step; returns their paths."""
    paths = []
    for suffix, text in (("html", as_page(lines)), ("md", as_markdown(lines)), ("csv", as_csv(lines))):
        path = folder / f"leaderboard.{suffix}"
        with atomic_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
        paths.append(path)
    return paths
