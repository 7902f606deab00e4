"""What a weights file says of itself: network, classes, data, run, and a checksum of its tensors.

It is the metadata of a model.safetensors: text by name, each value JSON but for the network's name. Whoever reads
weights reads these first; what an older file lacks is None or empty.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engine.config import ConfigError
from engine.config.pixels.image_size import LARGEST_SIDE, ImageSize, sides, size_from

if TYPE_CHECKING:
    from torch import Tensor

CHECKSUM = "checksum"


@dataclass(frozen=True)
class WeightsFacts:
    """What a network was trained as and on."""

    arch: str
    classes: list[str]
    """Names in the order of the outputs."""
    options: dict[str, Any]
    """What `archs.build` was told beside the name."""
    image_size: ImageSize
    """Side in pixels, or (height, width)."""
    data: dict[str, Any] = field(default_factory=dict)
    """The training data's fingerprint (engine.data.fingerprint) as plain values; empty where it is not known."""
    run: dict[str, Any] = field(default_factory=dict)
    """The fields that make the run what it is (engine.recovery.same_run), by their dotted names."""
    preprocessing: str = ""
    """engine.data.preprocessing as JSON; empty where nobody wrote it down."""

    def as_metadata(self) -> dict[str, str]:
        """Text by name, as safetensors keeps it."""
        expected = {"preprocessing": self.preprocessing} if self.preprocessing else {}
        return expected | {
            "arch": self.arch,
            "classes": json.dumps(self.classes),
            "options": json.dumps(self.options),
            "image_size": json.dumps(self.image_size),
            "data": json.dumps(self.data),
            "run": json.dumps(self.run),
        }

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str] | None, origin: str) -> WeightsFacts:
        """What `as_metadata` gave; `origin` begins the message.

        Raises ConfigError for metadata that is missing or not of this project, naming the entry.
        """
        found = dict(metadata or {})
        if "arch" not in found:
            raise ConfigError(f"{origin} does not say which network it is of; name a run folder")
        facts = {
            "classes": class_names(found.get("classes"), origin),
            "options": _entry(found, "options", dict, origin, "{}"),
            "image_size": _size(_entry(found, "image_size", int | list, origin), origin),
            "data": _entry(found, "data", dict, origin, "{}"),
            "run": _entry(found, "run", dict, origin, "{}"),
        }
        return cls(found["arch"], **facts, preprocessing=found.get("preprocessing", ""))


def class_names(text: str | None, origin: str) -> list[str]:
    """The classes in a file's metadata, in order: whoever reads them reads them here.

    Raises ConfigError, which begins with `origin`, for what are no names, and for a name that stands twice.
    """
    return refuse_odd_names(_entry({} if text is None else {"classes": text}, "classes", list, origin), origin)


def refuse_odd_names(names: list[Any], origin: str) -> list[str]:
    """The same names. Raises ConfigError where there are none, some are not text, or two are equal."""
    if not names or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{origin}: what it says of itself cannot be read: classes are not names")
    if len(set(names)) < len(names):
        twice, count = Counter(names).most_common(1)[0]
        raise ConfigError(f"{origin}: what it says of itself cannot be meant: {count} classes are called {twice!r}")
    return names


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """A hash of names, shapes, dtypes and bits, whatever the order; tensors are on the CPU and contiguous."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(memoryview(tensor.contiguous().flatten().view(torch.uint8).numpy()))
    return digest.hexdigest()


def refuse_damaged(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None, origin: str) -> None:
    """Raise ConfigError where the tensors are not those that the file was written with; older files do not say."""
    written = (metadata or {}).get(CHECKSUM)
    if written is not None and written != checksum(tensors):
        raise ConfigError(f"{origin} is damaged: its tensors do not match the checksum that was written with them")


def _entry(metadata: dict[str, str], name: str, kind: Any, origin: str, missing: str | None = None) -> Any:
    """One value of JSON. Raises ConfigError where it is missing or of another kind."""
    text = metadata.get(name, missing)
    try:
        value = None if text is None else json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ConfigError(f"{origin}: what it says of itself cannot be read: {name} is {str(text)[:60]!r}")
    return value


def _size(value: int | list, origin: str) -> ImageSize:
    try:
        size = size_from(value)
        if min(sides(size)) > 0 and max(sides(size)) <= LARGEST_SIDE:
            return size
    except (TypeError, ValueError):
        pass
    raise ConfigError(
        f"{origin}: what it says of itself cannot be read: image_size is {str(value)[:60]}, not a side of 1 to "
        f"{LARGEST_SIDE:,} pixels"
    )
