"""A list of images: a CSV, TSV, JSON lines or Parquet file with a path and a label a row, perhaps split and group.

Paths are relative to the list. The order of rows is the order of images.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np

from engine.data.sources.folder import ROLES
from engine.data.sources.found import Found
from engine.data.sources.layouts.columns import chosen_columns
from engine.data.sources.layouts.labels import coded
from engine.data.sources.layouts.table_file import TableFile, open_table
from engine.data.sources.source import DataError, Split
from engine.data.sources.texts import Texts

logger = logging.getLogger("hcr")


def read_list(path: Path, columns: str = "") -> Found:
    """The images that a list names.

    columns  of which roles, as `--data.columns`; what it does not name is guessed and said

    Raises DataError, with the line, for a row without path or label, an unknown split, and a label below 0.
    """
    opened = open_table(path)
    roles = chosen_columns(str(path), opened.columns, opened.samples, columns)
    told = ", ".join(f"{role} from {name!r}" for role, name in roles.items())
    logger.info("%s: %s", path, told)
    table = opened.read(list(roles.values()))
    if not len(table):
        raise DataError(f"{path} has no rows; expected an image a row")
    column = {role: table.column(name).combine_chunks() for role, name in roles.items()}
    paths = paths_of(column["path"], opened, roles["path"])
    labels, classes = coded(column["label"], str(path), opened.line_of, f"label in column {roles['label']!r}")
    groups = texts_of(column["group"]) if "group" in roles else None
    _note_missing(paths, opened)
    if "split" not in roles:
        whole = Split(labels, paths, place=str(path))
        return Found("list", path, classes, {"train": whole}, groups={} if groups is None else {"train": groups})
    numbers, called = _splits(column["split"], opened, roles["split"])
    splits, own_groups = {}, {}
    for place, role in enumerate(called):
        rows = np.flatnonzero(numbers == place)
        splits[role] = Split(labels[rows], paths.take(rows), place=f"the {called[role]} rows of {path}")
        if groups is not None:
            own_groups[role] = groups.take(rows)
    return Found("list", path, classes, splits, called, own_groups)


def listed_paths(path: Path) -> list[str]:
    """The paths of a list that needs no labels. Raises DataError."""
    opened = open_table(path)
    roles = chosen_columns(str(path), opened.columns, opened.samples, "", needed=("path",), flag="its head")
    column = opened.read([roles["path"]]).column(0).combine_chunks()
    return list(paths_of(column, opened, roles["path"]))


def paths_of(column: Any, opened: TableFile, name: str) -> Texts:
    """The paths of a column. Raises DataError for a row without."""
    import pyarrow.compute as pc

    lengths = pc.fill_null(pc.binary_length(column), 0)
    if pc.min(lengths).as_py() == 0:
        row = pc.index(lengths, 0).as_py()
        raise DataError(f"{opened.path}, {opened.line_of(row)}: no path in column {name!r}")
    return texts_of(column, str(opened.path.parent))


def texts_of(column: Any, folder: str = "") -> Texts:
    """pyarrow's strings as `Texts`, over the same bytes."""
    import pyarrow as pa

    column = column.cast(pa.large_string())
    _, offsets, data = column.buffers()
    ends = np.frombuffer(offsets, dtype=np.int64)[column.offset : column.offset + len(column) + 1]
    blob = np.frombuffer(data, dtype=np.uint8) if data is not None else np.empty(0, np.uint8)
    return Texts(blob, ends[:-1], ends[1:], folder=folder)


def _splits(column: Any, opened: TableFile, name: str) -> tuple[np.ndarray, dict[str, str]]:
    """int64 [N] which split each row is of, and what each role is called, in that order."""
    import pyarrow.compute as pc

    encoded = pc.dictionary_encode(pc.fill_null(column, ""))
    values = encoded.dictionary.to_pylist()
    codes = encoded.indices.to_numpy()
    called: dict[str, str] = {}
    number = np.zeros(len(values), dtype=np.int64)
    for place, value in enumerate(values):
        role = ROLES.get(value.strip().lower())
        if role is None:
            row = int(np.flatnonzero(codes == place)[0])
            raise DataError(
                f"{opened.path}, {opened.line_of(row)}: split {value!r} in column {name!r}; "
                "there are train, val and test"
            )
        called.setdefault(role, value.strip())
        number[place] = list(called).index(role)
    return number[codes], called


def _note_missing(paths: Texts, opened: TableFile) -> None:
    """Say where a list's first image is not there: it may be relative to something else."""
    if not os.path.exists(paths[0]):  # noqa: PTH110 (a string)
        logger.info(
            "note: %s, %s: there is no %s; paths are relative to the list", opened.path, opened.line_of(0), paths[0]
        )
