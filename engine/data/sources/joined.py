"""Two splits as one, whatever their images lie in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.data.sources.source import DataError, Split, Stored


def joined(first: Split, second: Split, name: str) -> Split:
    """The images of both, the first's before the second's. Raises DataError where they are kept in different ways."""
    labels = np.concatenate([first.labels, second.labels])
    if first.arrays is not None and second.arrays is not None:
        return Split(labels, arrays=np.concatenate([first.arrays, second.arrays]))
    same = (first.stored is None) == (second.stored is None)
    if first.paths is None or second.paths is None or not same:
        raise DataError(f"{name} keeps its two splits in different ways; folds need one")
    paths = [*first.paths, *second.paths]
    if first.stored is None or second.stored is None:
        return Split(labels, paths)
    return Split(labels, paths, stored=Both(first.stored, second.stored))


@dataclass
class Both(Stored):
    """Two places that hold images, as one."""

    first: Stored
    second: Stored
    rows: np.ndarray | None = None
    """int64 [N], images of both by number; None is all."""

    def _all(self) -> np.ndarray:
        return np.arange(len(self.first.keys) + len(self.second.keys)) if self.rows is None else self.rows

    def _pick(self, first: Sequence, second: Sequence) -> list:
        cut = len(first)
        return [first[row] if row < cut else second[row - cut] for row in self._all().tolist()]

    @property
    def keys(self) -> Sequence[str]:
        return self._pick(self.first.keys, self.second.keys)

    def read(self, index: int) -> bytes:
        row, cut = index if self.rows is None else int(self.rows[index]), len(self.first.keys)
        return self.first.read(row) if row < cut else self.second.read(row - cut)

    def sizes(self) -> Sequence[int]:
        return self._pick(self.first.sizes(), self.second.sizes())

    def take(self, places: np.ndarray) -> Both:
        return Both(self.first, self.second, self._all()[places])
