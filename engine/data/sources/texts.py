"""Many strings without as many objects: a million paths take their bytes and 16 more each."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np

CHUNK = 65536
SPREAD = 8


class Texts(Sequence[str]):
    """N strings in one run of bytes.

    blob    UTF-8, one behind the other; bytes that are no text are kept as Python keeps file names (surrogateescape)
    starts  int64 [M], where each begins
    ends    int64 [M], where each ends
    rows    int64 [N], which of the M are meant; None is all
    folder  put before each that is no absolute path; nothing where it is empty
    """

    def __init__(
        self,
        blob: Any,
        starts: np.ndarray,
        ends: np.ndarray,
        rows: np.ndarray | None = None,
        folder: str = "",
    ) -> None:
        self.blob, self.starts, self.ends, self.rows, self.folder = blob, starts, ends, rows, folder

    @classmethod
    def of(cls, strings: Iterable[str], folder: str = "") -> Texts:
        """Such a sequence of any strings."""
        encoded = [os.fsencode(one) for one in strings]
        ends = np.cumsum([len(one) for one in encoded], dtype=np.int64)
        return cls(b"".join(encoded), ends - [len(one) for one in encoded], ends, folder=folder)

    def __len__(self) -> int:
        return len(self.starts if self.rows is None else self.rows)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return self._several(range(len(self))[index])
        return self._several([index])[0]

    def __iter__(self) -> Iterator[str]:
        for begin in range(0, len(self), CHUNK):
            yield from self[begin : begin + CHUNK]

    def _several(self, places: Sequence[int]) -> list[str]:
        rows: Any = np.asarray(places, dtype=np.int64)
        rows = rows if self.rows is None else self.rows[rows]
        if not len(rows):
            return []
        starts, ends = self.starts[rows], self.ends[rows]
        first, last = int(starts.min()), int(ends.max())
        if last - first > SPREAD * (ends - starts).sum() + CHUNK:  # far apart: one by one
            pairs = zip(starts.tolist(), ends.tolist(), strict=True)
            found = [os.fsdecode(bytes(self.blob[start:end])) for start, end in pairs]
        else:
            near = bytes(self.blob[first:last])
            pairs = zip((starts - first).tolist(), (ends - first).tolist(), strict=True)
            found = [os.fsdecode(near[start:end]) for start, end in pairs]
        if not self.folder:
            return found
        before = self.folder.rstrip("/") + "/"
        return [one if one.startswith("/") else before + one for one in found]

    def bare(self) -> Texts:
        """The same without the folder."""
        return Texts(self.blob, self.starts, self.ends, self.rows)

    def take(self, places: np.ndarray) -> Texts:
        """Those at `places`, int64 [M], over the same bytes."""
        rows = places if self.rows is None else self.rows[places]
        return Texts(self.blob, self.starts, self.ends, rows, self.folder)
