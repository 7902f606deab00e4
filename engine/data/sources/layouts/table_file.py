"""A list of images as columns of text: CSV, TSV, JSON lines or Parquet, read by pyarrow; a bad row is named by line."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.data.sources.listing import EXTENSIONS
from engine.data.sources.source import DataError

ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
SAMPLE = 100


@dataclass(frozen=True)
class TableFile:
    """An opened list; columns are read when they are asked for."""

    path: Path
    columns: list[str]
    samples: dict[str, list[str]]
    """The first values of each column, as text."""
    read: Callable[[list[str]], Any]
    """A pyarrow table of those columns, as strings."""
    line_of: Callable[[int], str]
    """Where a row is, by its number from 0: `line 3`, `row 3`."""


def open_table(path: Path) -> TableFile:
    """Look at a list. Raises DataError for a file that is none, is empty, or has a broken row."""
    try:
        import pyarrow as pa
    except ImportError:
        raise DataError(f"{path}: lists of images need pyarrow: pip install pyarrow") from None
    kind = path.suffix.lower()
    try:
        if kind == ".parquet":
            return _parquet(path)
        return _json_lines(path) if kind in (".jsonl", ".ndjson") else _delimited(path)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise DataError(f"{path} cannot be read as {kind[1:].upper()}: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


# --- CSV and TSV ---------------------------------------------------------------------------------------------------


def _delimited(path: Path) -> TableFile:
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        first = next((line for line in file if line.strip()), "")
    if not first:
        raise DataError(f"{path} is empty; expected a head with path and label, and a row an image")
    mark = "\t" if path.suffix.lower() == ".tsv" else max(",;\t|", key=first.count)
    head = next(csv.reader([first], delimiter=mark))
    headless = any(cell.strip().lower().endswith(EXTENSIONS) for cell in head)
    columns = [f"column {place + 1}" for place in range(len(head))] if headless else [cell.strip() for cell in head]
    if len(set(columns)) < len(columns):
        raise DataError(f"{path}, line 1: two columns have one name ({', '.join(columns)})")

    def read(wanted: list[str], limit: int | None = None) -> Any:
        broken: list[Any] = []
        options = {
            "read_options": arrow_csv.ReadOptions(
                column_names=columns, skip_rows=0 if headless else 1, use_threads=False, block_size=1 << 24
            ),
            "parse_options": arrow_csv.ParseOptions(
                delimiter=mark, invalid_row_handler=lambda row: broken.append(row) or "error"
            ),
            "convert_options": arrow_csv.ConvertOptions(
                column_types={name: pa.string() for name in columns}, include_columns=wanted, strings_can_be_null=False
            ),
        }
        try:
            if limit is None:
                return arrow_csv.read_csv(path, **options)
            with arrow_csv.open_csv(path, **options) as reader:
                batches = [batch for batch in (next(iter(reader), None),) if batch is not None]
                return pa.Table.from_batches(batches, reader.schema).slice(0, limit)
        except pa.ArrowInvalid:
            if not broken:
                raise
            row = broken[0]
            where = f"{path}" if row.number is None else f"{path}, line {row.number}"
            raise DataError(
                f"{where}: {row.actual_columns} columns where the first line has {row.expected_columns}: {row.text}"
            ) from None

    def line_of(row: int) -> str:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            rows = csv.reader(file, delimiter=mark)
            full = (rows.line_num for cells in rows if cells)
            for _ in range(row + (not headless)):
                next(full, None)
            return f"line {next(full, row + 1)}"

    return TableFile(path, columns, _samples(read(columns, SAMPLE)), read, line_of)


# --- JSON lines and Parquet ----------------------------------------------------------------------------------------


def _json_lines(path: Path) -> TableFile:
    import pyarrow as pa
    from pyarrow import json as arrow_json

    try:
        table = arrow_json.read_json(path)
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}, {_bad_json_line(path)}: {_first_line(error)}") from None

    def line_of(row: int) -> str:
        with path.open("rb") as file:
            full = (number for number, line in enumerate(file, 1) if line.strip())
            for _ in range(row):
                next(full, None)
            return f"line {next(full, row + 1)}"

    return _in_memory(path, table, line_of)


def _bad_json_line(path: Path) -> str:
    """The first line that is no JSON object, or whose values are of other kinds than those of the first."""
    kinds: dict[str, type] = {}
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError:
                return f"line {number}"
            if not isinstance(row, dict):
                return f"line {number}"
            for name, value in row.items():
                if value is not None and kinds.setdefault(name, type(value)) is not type(value):
                    return f"line {number}"
    return "a line"


def _parquet(path: Path) -> TableFile:
    from pyarrow import parquet

    table = parquet.ParquetFile(path, memory_map=True)
    columns = table.schema_arrow.names

    def read(wanted: list[str]) -> Any:
        return _as_text(table.read(columns=wanted), path)

    first = next(table.iter_batches(batch_size=SAMPLE), None)
    samples: dict[str, list[str]] = {name: [] for name in columns}
    if first is not None:
        samples = {name: [str(value) for value in first.column(name).to_pylist()] for name in columns}
    return TableFile(path, columns, samples, read, lambda row: f"row {row + 1}")


def _in_memory(path: Path, table: Any, line_of: Callable[[int], str]) -> TableFile:
    def read(wanted: list[str]) -> Any:
        return _as_text(table.select(wanted), path)

    samples = {
        name: [str(value) for value in table.column(name).slice(0, SAMPLE).to_pylist()] for name in table.column_names
    }
    return TableFile(path, table.column_names, samples, read, line_of)


def _samples(table: Any) -> dict[str, list[str]]:
    return {name: [str(value) for value in table.column(name).to_pylist()] for name in table.column_names}


def _as_text(table: Any, path: Path) -> Any:
    """The table with text in every column: whole numbers as they are written."""
    import pyarrow as pa

    for place, name in enumerate(table.column_names):
        column = table.column(place)
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if pa.types.is_floating(column.type):
            try:
                column = column.cast(pa.int64())  # numbers with a gap among them come as floats
            except pa.ArrowInvalid:
                raise DataError(f"{path}: column {name} has fractions; a label is a name or a whole number") from None
        try:
            table = table.set_column(place, name, column.cast(pa.string()))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            raise DataError(f"{path}: column {name} is of {column.type}, and not text or whole numbers") from None
    return table
