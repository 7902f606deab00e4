"""A Hugging Face dataset that lies on disk: what `save_to_disk` wrote, or Parquet or Arrow files with an image column.

`datasets` reads its tables, memory-mapped; it is an optional extra. Nothing is fetched, no code of a dataset is run.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.data.shards.read import split_of
from engine.data.sources.folder import ROLES, folders_in
from engine.data.sources.found import Found
from engine.data.sources.layouts.columns import NAMES, plain, told_columns
from engine.data.sources.layouts.labels import coded
from engine.data.sources.reading import Unreachable, Unreadable, read
from engine.data.sources.source import DataError, Split, Stored
from engine.data.sources.texts import Texts

MARKS = ("dataset_dict.json", "state.json")
"""What save_to_disk leaves: of several splits, of one."""
TABLES = (".parquet", ".arrow")
KINDS = {b"\x89PNG": ".png", b"RIFF": ".webp", b"GIF8": ".gif", b"BM": ".bmp", b"II*\0": ".tif", b"MM\0*": ".tif"}
"""How files begin, for images without a name; others are called .jpg, and decoders look for themselves."""


def tables_in(root: Path) -> list[Path]:
    """The Parquet or Arrow files of a folder, or of the data/ in it, sorted; of one kind."""
    folders = [folder for folder in (root, root / "data") if folder.is_dir()]
    found = sorted(path for folder in folders for path in folder.iterdir() if path.suffix.lower() in TABLES)
    return [path for path in found if path.suffix.lower() == found[0].suffix.lower()]


def is_saved_dataset(root: Path) -> bool:
    """Whether a folder, or a .parquet file, holds images in tables."""
    if root.is_dir():
        if any((root / mark).is_file() for mark in MARKS):
            return True
        if set(folders_in(root)) - {"data"}:  # class folders, with a table beside them
            return False
        return any(path.suffix.lower() == ".arrow" or is_saved_dataset(path) for path in tables_in(root)[:1])
    if root.suffix.lower() != ".parquet":
        return False
    try:
        import pyarrow as pa
        from pyarrow import parquet

        return any(_holds_images(field.type) for field in parquet.read_schema(root))
    except (ImportError, OSError, pa.ArrowInvalid):
        return False


def _holds_images(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return "bytes" in {kind.field(place).name for place in range(kind.num_fields)}
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def read_saved(root: Path, cache: Path, columns: str = "") -> Found:
    """The splits of a dataset on disk.

    cache    folder in which Parquet is kept as Arrow, which can be read at random
    columns  as `--data.columns`; the image's role is `path`

    Raises DataError where `datasets` is not installed, for tables without an image column or a label, and, with the
    row, for a label that is out of range.
    """
    parts = _opened(root, cache)
    roles = _roles(root, next(iter(parts.values())), columns)
    splits: dict[str, Split] = {}
    called: dict[str, str] = {}
    groups: dict[str, Sequence[str]] = {}
    classes: list[str] | None = None
    whole = list(parts) == [""]
    texts = {} if "names" in roles else _coded(root, parts, roles["label"])
    for name, part in parts.items():
        role = "train" if whole else ROLES.get(name.lower())
        if role is None:
            raise DataError(f"{root}: split {name!r} is none of train, val and test; save those that are to be used")
        if role in splits:
            raise DataError(f"{root}: {called[role]} and {name} are two splits for {role}; save one of them")
        labels, classes = texts[name] if texts else _numbered(root, name, part, roles)
        if (labels < 0).all() and role == "test":
            continue  # published without its labels
        _refuse_out_of_range(root, name, labels, classes)
        stored = Rows.of(part, roles["path"])
        place = f"the {name} split of {root}" if name else str(root)
        splits[role] = Split(labels, stored.names(f"{root}:{name}" if name else str(root)), stored=stored, place=place)
        if name:
            called[role] = name
        if "group" in roles:
            groups[role] = [str(one) for one in _column(part, roles["group"]).to_pylist()]
    assert classes is not None  # there is a part
    return Found("dataset", root, classes, splits, called, groups)


def _opened(root: Path, cache: Path) -> dict[str, Any]:
    """The tables by split; of one that is not split, by the empty name."""
    try:
        import datasets
    except ImportError:
        raise DataError(
            f"{root} is a dataset of Hugging Face: pip install datasets, which reads it (the extra `datasets`)"
        ) from None
    datasets.disable_progress_bars()
    tables = [root] if root.is_file() else tables_in(root)
    try:
        if root.is_dir() and any((root / mark).is_file() for mark in MARKS):
            found = datasets.load_from_disk(str(root))
            return dict(found) if isinstance(found, datasets.DatasetDict) else {"": found}
        files: dict[str, list[str]] = {}
        for path in tables:
            files.setdefault((split_of(path, root) or "") if len(tables) > 1 else "", []).append(str(path))
        if tables[0].suffix.lower() == ".arrow":
            return {
                name: datasets.concatenate_datasets([datasets.Dataset.from_file(path) for path in paths])
                for name, paths in files.items()
            }
        kept = str(cache / "datasets")
        return {name: datasets.Dataset.from_parquet(paths, cache_dir=kept) for name, paths in files.items()}
    except Exception as error:  # damaged tables raise nearly anything, from pyarrow and from datasets
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"{root} cannot be read as a dataset ({reason})") from None


def _roles(root: Path, part: Any, columns: str) -> dict[str, Any]:
    """The columns of image, label and group, and the label's `names` where the dataset has them."""
    import datasets

    features = part.features
    roles: dict[str, Any] = dict(told_columns(str(root), list(features), columns, "--data.columns"))
    types = {field.name: field.type for field in features.arrow_schema}
    pictures = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    pictures = pictures or [name for name in features if _holds_images(types[name])]
    if "path" not in roles:
        if len(pictures) != 1:
            has = f"{' and '.join(pictures)} could each be the image" if pictures else "no column holds images"
            raise DataError(f"{root}: {has} (it has {', '.join(features)}); name it: --data.columns path=COLUMN")
        roles["path"] = pictures[0]
    if "label" not in roles:
        free = [name for name in features if name not in roles.values()]
        own = [name for name in free if isinstance(features[name], datasets.ClassLabel)]
        own = own or [name for name in free if plain(name) in NAMES["label"]]
        if len(own) != 1:
            has = f"{' and '.join(own)} could each be the label" if own else "no column is the label"
            raise DataError(f"{root}: {has} (it has {', '.join(features)}); name it: --data.columns label=COLUMN")
        roles["label"] = own[0]
    if "group" not in roles:
        named = [name for name in features if plain(name) in NAMES["group"]]
        roles |= {"group": named[0]} if len(named) == 1 else {}
    if isinstance(features[roles["label"]], datasets.ClassLabel):
        roles["names"] = features[roles["label"]].names
    return roles


def _column(part: Any, name: str) -> Any:
    """One column as pyarrow has it."""
    return part.select_columns([name]).with_format("arrow")[:].column(0).combine_chunks()


def _numbered(root: Path, name: str, part: Any, roles: dict[str, Any]) -> tuple[np.ndarray, list[str]]:
    column = _column(part, roles["label"])
    labels = np.asarray(column.fill_null(-1), dtype=np.int64)
    return labels, list(roles["names"])


def _coded(root: Path, parts: dict[str, Any], label: str) -> dict[str, tuple[np.ndarray, list[str]]]:
    """Labels that are names or numbers, over all splits together."""
    import pyarrow as pa

    columns = [_column(part, label) for part in parts.values()]
    try:
        column = pa.chunked_array([one.cast(pa.string()) for one in columns]).combine_chunks()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise DataError(f"{root}: column {label} is of {columns[0].type}, and not text or whole numbers") from None
    labels, classes = coded(column, str(root), lambda row: f"row {row + 1}", f"label in column {label!r}")
    cuts = np.cumsum([len(one) for one in columns])[:-1]
    return {name: (own, classes) for name, own in zip(parts, np.split(labels, cuts), strict=True)}


def _refuse_out_of_range(root: Path, name: str, labels: np.ndarray, classes: list[str]) -> None:
    wrong = np.flatnonzero((labels < 0) | (labels >= len(classes)))
    if len(wrong):
        where = f"{root}, {name} row {wrong[0] + 1}" if name else f"{root}, row {wrong[0] + 1}"
        raise DataError(f"{where}: label {labels[wrong[0]]} is out of range: there are {len(classes)} classes, from 0")


@dataclass
class Rows(Stored):
    """The image column of a table; memory-mapped, so that threads and processes share it."""

    table: Any
    """A datasets.Dataset of that column alone, in pyarrow's format."""
    keys: Texts
    lengths: np.ndarray
    """int64 [N] bytes."""
    rows: np.ndarray
    """int64 [N], rows of the table."""

    @classmethod
    def of(cls, part: Any, column: str) -> Rows:
        """Of one column of a split."""
        table = part.select_columns([column]).with_format("arrow")
        names: list[str] = []
        lengths: list[np.ndarray] = []
        for batch in table.iter(batch_size=1000):
            names += _names(batch.column(0).combine_chunks(), len(names), lengths)
        if len(set(names)) < len(names):
            names = [f"{row:09d}-{os.path.basename(name)}" for row, name in enumerate(names)]  # noqa: PTH119 (names)
        return cls(table, Texts.of(names), np.concatenate(lengths or [np.zeros(0, np.int64)]), np.arange(len(names)))

    def names(self, root: str) -> Texts:
        """For messages: the table's place and the image's name."""
        return Texts(self.keys.blob, self.keys.starts, self.keys.ends, self.keys.rows, root)

    def sizes(self) -> Sequence[int]:
        return self.lengths.tolist()

    def take(self, places: np.ndarray) -> Rows:
        return Rows(self.table, self.keys.take(places), self.lengths[places], self.rows[places])

    def read(self, index: int) -> bytes:
        row = int(self.rows[index])
        try:
            value = self.table[row : row + 1].column(0)[0].as_py()
        except OSError as error:
            raise Unreachable(error.strerror or str(error)) from None
        data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
        if data is None and path:
            return read(path)
        if not data:
            raise Unreadable("the row has no image")
        return data


def _names(column: Any, first: int, lengths: list[np.ndarray]) -> list[str]:
    """The names of some rows' images, and their sizes into `lengths`; a number and an ending where there is no name."""
    import pyarrow as pa
    import pyarrow.compute as pc

    paths: list[str | None] = [None] * len(column)
    data = column
    if pa.types.is_struct(column.type):
        data = pc.struct_field(column, "bytes")
        if column.type.get_field_index("path") >= 0:
            paths = pc.struct_field(column, "path").to_pylist()
    lengths.append(np.asarray(pc.fill_null(pc.binary_length(data), 0), dtype=np.int64))
    heads = pc.binary_slice(data, 0, 4).to_pylist()
    return [
        (path or f"{first + place:09d}{_ending(head or b'')}").replace(os.sep, "/").lstrip("/")
        for place, (path, head) in enumerate(zip(paths, heads, strict=True))
    ]


def _ending(head: bytes) -> str:
    return next((ending for begin, ending in KINDS.items() if head.startswith(begin)), ".jpg")
