"""What data a run is trained on, in a few values: class names in order, counts, a hash of relative paths and sizes.

It goes into every checkpoint and weights file. Files are not opened: a picture that was repainted without changing its
size in bytes is not noticed.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

from engine.data.encoded import encoded_sizes, relative_names
from engine.data.sources.source import Source, Split


@dataclass(frozen=True)
class Fingerprint:
    """Plain values; equal for the same data wherever it lies."""

    classes: list[str]
    """Names in label order."""
    train_images: int
    val_images: int
    digest: str
    """Of both splits' relative paths and sizes in bytes; of the pixels for data that is held as arrays."""

    def as_dict(self) -> dict[str, Any]:
        """For a checkpoint or a file's metadata."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> Fingerprint | None:
        """What `as_dict` gave; None for anything else, as older files hold nothing."""
        try:
            found = cls(**values)
        except TypeError:
            return None
        counts = isinstance(found.train_images, int) and isinstance(found.val_images, int)
        return found if counts and isinstance(found.classes, list) and isinstance(found.digest, str) else None


def fingerprint_of(source: Source) -> Fingerprint:
    """The fingerprint of a source's data. A file that has gone counts as one of no size: reading it will tell."""
    digest = hashlib.sha256()
    for name, split in (("train", source.train), ("val", source.val)):
        digest.update(f"{name} {len(split)}\n".encode())
        digest.update(memoryview(split.labels))
        _add_images(digest, split)
    return Fingerprint(list(source.classes), len(source.train), len(source.val), digest.hexdigest()[:32])


def _add_images(digest: Any, split: Split) -> None:
    if split.paths is None:
        assert split.arrays is not None
        digest.update(memoryview(split.arrays).cast("B"))
        return
    for name, size in zip(relative_names(split), encoded_sizes(split), strict=True):
        digest.update(f"{name} {size}\n".encode("utf-8", "surrogateescape"))
