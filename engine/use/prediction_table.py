"""Predictions as a table: on the screen, as CSV, JSON lines or Parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from engine.config import ConfigError
from engine.runs.text_table import width
from engine.runs.wording import DASH, percent
from engine.use.predict import Prediction

KINDS = (".csv", ".jsonl", ".parquet")
GROUP = 50_000
"""Rows that a Parquet file is written in."""


def as_row(prediction: Prediction) -> dict[str, Any]:
    """As plain values, for JSON."""
    row = {"path": prediction.path, "classes": prediction.classes, "probabilities": prediction.probabilities}
    return row | {"reason": prediction.reason}


def refuse_kind(path: Path) -> None:
    """Raise ConfigError unless `path` names a table that can be written here."""
    if path.suffix not in KINDS:
        raise ConfigError(f"--output {path}: a table's name ends in {', '.join(KINDS)}")
    if path.suffix == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError:
            raise ConfigError("--output .parquet needs pyarrow: pip install pyarrow (or the extra `export`)") from None


def write_table(path: Path, kind: str, rows: Iterable[dict[str, Any]], top_k: int) -> None:
    """Write rows of `as_row` to `path`, as one of KINDS.

    csv      path, class_1, probability_1, … class_k, probability_k, reason
    jsonl    a row's object a line
    parquet  path, classes (a list), probabilities (a list), reason
    """
    if kind == ".parquet":
        _write_parquet(path, rows)
        return
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        if kind == ".jsonl":
            file.writelines(json.dumps(row) + "\n" for row in rows)
            return
        writer = csv.writer(file)
        ranks = range(1, top_k + 1)
        pairs = [name for rank in ranks for name in (f"class_{rank}", f"probability_{rank}")]
        writer.writerow(["path", *pairs, "reason"])
        writer.writerows(_cells(row, top_k) for row in rows)


def _cells(row: dict[str, Any], top_k: int) -> list[str]:
    pairs = zip(row["classes"], row["probabilities"], strict=True)
    cells = [cell for name, probability in pairs for cell in (name, f"{probability:.6g}")]
    return [row["path"], *cells, *[""] * (2 * top_k - len(cells)), row["reason"] or ""]


def _write_parquet(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    import pyarrow
    from pyarrow import parquet

    schema = pyarrow.schema(
        [
            ("path", pyarrow.string()),
            ("classes", pyarrow.list_(pyarrow.string())),
            ("probabilities", pyarrow.list_(pyarrow.float64())),
            ("reason", pyarrow.string()),
        ]
    )
    with parquet.ParquetWriter(path, schema) as writer:
        for group in _groups(iter(rows)):
            plain = [row | {"path": row["path"].encode(errors="backslashreplace").decode()} for row in group]
            writer.write_table(pyarrow.Table.from_pylist(plain, schema))


def _groups(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    while group := list(islice(rows, GROUP)):
        yield group


def on_screen(rows: Iterable[dict[str, Any]]) -> str:
    """A line a picture for people: its path, then the classes and their probabilities, or why it cannot be read."""
    lines = []
    for row in rows:
        pairs = zip(row["classes"], row["probabilities"], strict=True)
        said = ", ".join(f"{name} {percent(share, 1)}" for name, share in pairs) or DASH
        shown = row["path"].encode(errors="backslashreplace").decode()
        shown = "".join(sign if sign.isprintable() else "�" for sign in shown)  # a name may hold escape sequences
        lines.append((shown, f"unreadable: {row['reason']}" if row["reason"] else said))
    widest = max(width(path) for path, _ in lines)
    return "\n".join(path + " " * (widest - width(path) + 2) + said for path, said in lines)
