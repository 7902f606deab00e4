"""Weights as people's tools leave them: a run folder, a checkpoint, a state dict under a trainer's prefixes.

Nothing is read that would run code: beside tensors, plain values and what training scripts keep beside them
(an argparse.Namespace, paths, numpy's numbers) pass, and everything else is named.
"""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.config import ConfigError, require
from engine.runs.weights_facts import class_names, refuse_damaged

if TYPE_CHECKING:
    from torch import Tensor

WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights")
"""Keys under which training scripts keep the weights in a checkpoint."""
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "ema_model.", "backbone.")
"""What DataParallel, torch.compile, averages and training modules put before every name."""
WITHIN = "_orig_mod."
"""What torch.compile puts before the names of a part of a network."""
COUNTERS = ("n_averaged", "initted", "step", "num_updates", "decay")
"""What averages of weights keep beside them, as a number."""


def weights_path(path: Path) -> Path:
    """The file that a path means: a run folder's best weights, a checkpoint's trainer.pt, or itself."""
    if not path.is_dir():
        return path
    for name in ("model.safetensors", "trainer.pt"):
        if (path / name).is_file():
            return path / name
    raise ConfigError(f"{path} is a folder without model.safetensors: neither a finished epoch's run nor a checkpoint")


def present(path: Path, origin: str) -> Path:
    """As `weights_path`. Raises ConfigError, which begins with `origin`, where that file is not there, or empty."""
    try:
        path = weights_path(path)
        require(path.is_file(), f"{path}: no such file (a library's: timm:NAME or torchvision:NAME)")
    except OSError as error:
        raise ConfigError(f"{origin}: {error.strerror}") from None
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}") from None
    require(path.stat().st_size > 0, f"{origin}: the file is empty")
    return path


def read_weight_file(path: Path, origin: str) -> dict[str, Tensor]:
    """The tensors of a .safetensors file or of a torch file by the network's own names, on the CPU.

    Raises ConfigError, which begins with `origin`, for what is not there, damaged, or no state dict.
    """
    path = present(path, origin)
    tensors = _safetensors(path, origin) if path.suffix == ".safetensors" else _state_dict(_torch(path, origin))
    require(bool(tensors), f"{origin} holds no state dict")
    return without_prefixes(tensors)


def without_prefixes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under the network's own names, and without the counters of averages."""
    kept = {name.replace(f".{WITHIN}", "."): one for name, one in tensors.items() if not _is_counter(name, one)}
    while prefix := next((one for one in PREFIXES if kept and all(name.startswith(one) for name in kept)), None):
        kept = {name.removeprefix(prefix): tensor for name, tensor in kept.items()}
    return {name.removeprefix(WITHIN): tensor for name, tensor in kept.items()}


def _is_counter(name: str, tensor: Tensor) -> bool:
    return name in COUNTERS and tensor.numel() == 1


def _safetensors(path: Path, origin: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            metadata = file.metadata()
    except (SafetensorError, OSError, ValueError) as error:
        raise ConfigError(f"{origin} cannot be read as weights: {_line(error)}") from None
    refuse_damaged(tensors, metadata, origin)
    return tensors


def _torch(path: Path, origin: str) -> Any:
    """What torch.load gives. Raises ConfigError with what stands in the way instead of torch's advice to trust it."""
    import pickle

    import torch

    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            try:
                bad = archive.testzip()
            except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError, RuntimeError, OSError) as error:
                raise ConfigError(f"{origin} is damaged: {_line(error)}") from None
        require(bad is None, f"{origin} is damaged: its part {bad} does not match its checksum")
        require(
            not any("/code/" in name for name in names),
            f"{origin} is a TorchScript program, not weights: save its state_dict() instead",
        )
    try:
        with torch.serialization.safe_globals(_plain()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        found = ", ".join(_foreign(path))
        what = f"it holds more than tensors and plain values ({found}), which would have to be run as code"
        what = what if found else "it is no torch file, or damaged"
        raise ConfigError(f"{origin} cannot be read as weights: {what}; save the network's state_dict()") from None
    except (LookupError, EOFError, struct.error):  # of bytes that are no pickle; what they say is the reader's affair
        raise ConfigError(f"{origin} cannot be read as weights: it is no torch file, or damaged") from None
    except Exception as error:  # a damaged archive raises nearly anything
        raise ConfigError(f"{origin} cannot be read as weights: {_line(error)}") from None


def _foreign(path: Path) -> list[str]:
    """The classes that a torch file would import, some of them."""
    import torch

    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))[:4]
    except Exception:  # not an archive of torch's
        return []


def _plain() -> list[Any]:
    """Classes that hold values and run nothing when they are made."""
    import argparse
    import pathlib
    import types

    import numpy as np

    scalar = getattr(np, "_core", np).multiarray.scalar
    numbers = [type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "bool")]
    return [
        *(argparse.Namespace, types.SimpleNamespace, pathlib.PosixPath, pathlib.PurePosixPath),
        *(np.dtype, scalar, *numbers),
    ]


def _state_dict(read: Any) -> dict[str, Tensor]:
    """The tensors within what a script saved: itself, or under one of WRAPPERS, at any depth."""
    import torch

    if isinstance(read, dict) and isinstance(average := read.get("average"), dict) and "tensors" in average:
        read = average["tensors"]  # of our own checkpoint: what its run evaluates
    for _ in range(4):
        inner = next(
            (read[key] for key in WRAPPERS if isinstance(read, dict) and isinstance(read.get(key), dict)), None
        )
        if inner is None:
            break
        read = inner
    if not isinstance(read, dict):
        return {}
    return {key: value for key, value in read.items() if isinstance(key, str) and isinstance(value, torch.Tensor)}


def _line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]


def file_shapes(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a run folder's, without their values: on the meta device."""
    import torch
    from safetensors import safe_open

    with safe_open(weights_path(path), framework="pt") as file:
        sizes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (not a dict)
    return {name: torch.empty(size, device="meta") for name, size in sizes.items()}


def file_metadata(path: Path) -> dict[str, str]:
    """What weights say of themselves (engine.runs.weights_facts); nothing for files that do not, or cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        path = weights_path(path)
        if path.suffix == ".safetensors" and path.is_file():
            with safe_open(path, framework="numpy") as file:
                return dict(file.metadata() or {})
        if path.name == "trainer.pt" and path.is_file():
            return _of_checkpoint(_torch(path, str(path)))
    except (SafetensorError, OSError, ValueError):  # ConfigError is a ValueError
        return {}  # told where the tensors are read
    return {}


def _of_checkpoint(state: Any) -> dict[str, str]:
    """The same entries from what a checkpoint of ours was trained on; nothing where it does not say."""
    data, run = (state.get(name) if isinstance(state, dict) else None for name in ("data", "run"))
    found = {}
    if isinstance(data, dict) and "classes" in data:
        found["classes"] = json.dumps(data["classes"])
    names = ("mean", "std", "eval_crop", "interpolation", "image_size")
    if isinstance(run, dict) and all(run.get(f"data.{name}") is not None for name in names):
        said = {name: run[f"data.{name}"] for name in names}
        said |= {"channels": run.get("data.channels") or 3, "bits": run.get("data.bits") or 8}
        found["preprocessing"] = json.dumps(said)
    return found


def named_classes(metadata: Mapping[str, str], origin: str) -> list[str] | None:
    """The classes in a file's metadata; None where there are none. Raises ConfigError as `class_names`."""
    return class_names(metadata["classes"], origin) if "classes" in metadata else None
