"""Tensors that ranks hold in parts, in files that any number of ranks reads: `shards/model-00001-of-00004.safetensors`.

The form is that of torch.distributed.checkpoint's safetensors writer (hf_storage.py), whose reader takes them: a file a
rank, and in its header where in the whole tensor each part begins; of runs of elements, as ZeRO cuts, also the whole's
shape. Nothing is pickled. Names are `model.NAME` for
parameters and buffers, and `optimizer.NAME.STATE` for what the optimizer keeps of parameter NAME.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from engine.config import ConfigError

FOLDER = "shards"
HEADER, BEGINS = "DCP_SHARDING_INFO", "saved_offsets"
"""As in torch/distributed/checkpoint/_hf_utils.py."""
SHAPE = "whole_shape"
"""Ours beside them."""


@dataclass(frozen=True)
class Part:
    """A rank's part of a tensor, in host memory."""

    name: str
    tensor: Tensor
    begins: tuple[int, ...]
    """Of its first element in the whole, by dimension."""
    shape: tuple[int, ...] | None = None
    """Of the whole, where the part is a run of its elements in their order."""


def name_of(rank: int, ranks: int) -> str:
    """A rank's file."""
    return f"model-{rank + 1:05d}-of-{ranks:05d}.safetensors"


def write_parts(folder: Path, rank: int, ranks: int, parts: Iterable[Part]) -> None:
    """This rank's file, flushed to disk. Raises OSError and what safetensors makes of one."""
    from safetensors.torch import save_file

    kept = {part.name: part for part in parts}
    header = json.dumps(
        {
            name: {BEGINS: list(part.begins)} | ({SHAPE: list(part.shape)} if part.shape is not None else {})
            for name, part in kept.items()
        }
    )
    folder.mkdir(exist_ok=True)
    path = folder / name_of(rank, ranks)
    save_file({name: part.tensor.contiguous() for name, part in kept.items()}, path, {HEADER: header})
    with path.open("rb+") as file:
        os.fsync(file.fileno())


class Shards:
    """The whole tensors in a folder of parts.

    Raises ConfigError where it cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        from safetensors import SafetensorError, safe_open

        self.folder = folder
        self._places: dict[str, list[tuple[Path, tuple[int, ...]]]] = {}
        self._shapes: dict[str, list[int]] = {}
        try:
            for path in sorted(folder.glob("*.safetensors")):
                with safe_open(path, framework="pt") as file:
                    begins = json.loads((file.metadata() or {})[HEADER])
                    for name in file.keys():  # noqa: SIM118
                        self._places.setdefault(name, []).append((path, tuple(begins[name][BEGINS])))
                        if SHAPE in begins[name]:
                            self._shapes[name] = begins[name][SHAPE]
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise ConfigError(f"{folder} cannot be read: {error}") from None

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def names(self) -> Iterator[str]:
        """All of them."""
        return iter(self._places)

    def whole(self, name: str) -> Tensor:
        """A tensor put together from its parts, on the CPU. Raises KeyError."""
        from safetensors import safe_open

        parts: list[tuple[tuple[int, ...], Tensor]] = []
        for path, begins in self._places[name]:
            with safe_open(path, framework="pt") as file:
                parts.append((begins, file.get_tensor(name)))
        if len(parts) == 1:
            return self._shaped(name, parts[0][1])
        ends = [[start + size for start, size in zip(begins, part.shape, strict=True)] for begins, part in parts]
        whole = torch.empty([max(each) for each in zip(*ends, strict=True)], dtype=parts[0][1].dtype)
        for begins, part in parts:
            whole[tuple(slice(b, b + n) for b, n in zip(begins, part.shape, strict=True))] = part
        return self._shaped(name, whole)

    def _shaped(self, name: str, whole: Tensor) -> Tensor:
        return whole.reshape(self._shapes[name]) if name in self._shapes else whole
