"""Which layout lies at a path, by what is there."""

from __future__ import annotations

from pathlib import Path

from engine.data.shards.read import is_shards, read_shards
from engine.data.sources.folder import folders_in, read_folder
from engine.data.sources.found import Found, Wanted
from engine.data.sources.layouts.image_list import read_list
from engine.data.sources.layouts.saved_dataset import is_saved_dataset, read_saved
from engine.data.sources.layouts.table_file import ENDINGS
from engine.data.sources.source import DataError

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


def read_layout(root: Path, wanted: Wanted, cache: Path, flag: str = "--data.root") -> Found:
    """What lies at `root`: folders of images, a list of them, shards, or a saved dataset.

    Raises DataError for what is missing or none of these.
    """
    if not root.exists():
        raise DataError(f"{flag} {root}: no such file or folder; expected images in class folders, a list, or shards")
    if is_shards(root):
        return read_shards(root)
    if is_saved_dataset(root):
        return read_saved(root, cache, wanted.columns)
    if not root.is_dir():
        if root.suffix.lower() in ENDINGS:
            return read_list(root, wanted.columns)
        raise DataError(f"{flag} {root}: neither a folder nor a list ({' '.join(ENDINGS)}) nor a .tar of images")
    packed = sorted(path.name for path in root.iterdir() if path.name.lower().endswith(COMPRESSED))
    if packed and not folders_in(root):
        raise DataError(f"{flag} {root} holds {packed[0]}: unpack it; shards are plain .tar files, read at random")
    return read_folder(root)
