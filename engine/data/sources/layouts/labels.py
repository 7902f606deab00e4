"""Labels as a table has them, names or numbers, as indices into classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from engine.data.sources.source import DataError

MANY = 100
"""Rows from which on a column with nearly as many values as rows is taken for no label."""


def coded(column: Any, where: str, line_of: Callable[[int], str], told: str) -> tuple[np.ndarray, list[str]]:
    """(int64 [N], class names): names in sorted order, whole numbers in theirs.

    column   pyarrow strings [N]
    where    the table, for messages
    line_of  says where a row is, by its number
    told     which column it is

    Raises DataError for a row without a label, a number below 0, and as many labels as rows.
    """
    import pyarrow.compute as pc

    encoded = pc.dictionary_encode(column)
    if encoded.null_count or (values := encoded.dictionary.to_pylist()).count(""):
        empty = pc.or_kleene(pc.is_null(column), pc.equal(column, ""))
        row = pc.index(pc.fill_null(empty, True), True).as_py()
        raise DataError(f"{where}, {line_of(row)}: no {told}")
    codes = encoded.indices.to_numpy().astype(np.int64)
    if len(values) > len(codes) / 2 and len(codes) >= MANY:
        raise DataError(
            f"{where}: {told} has {len(values)} different values in {len(codes)} rows, which is no label; name another "
            "column: --data.columns label=COLUMN"
        )
    if all(_is_number(value) for value in values):
        if low := [value for value in values if int(value) < 0]:
            row = int(np.flatnonzero(codes == values.index(low[0]))[0])
            raise DataError(f"{where}, {line_of(row)}: {told} is {low[0]}; numbers of classes count from 0")
        order = sorted(values, key=int)
    else:
        order = sorted(values)
    place = {value: index for index, value in enumerate(order)}
    return np.array([place[value] for value in values], dtype=np.int64)[codes], order


def _is_number(text: str) -> bool:
    return text.lstrip("-").isdecimal() and str(int(text)) == text
