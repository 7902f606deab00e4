"""`FILE.py:FACTORY`: a network that a person's own function makes. What goes wrong in the file is told by its line."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
import traceback
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from archs.classifier import ImageSize
from archs.registry import UnknownArch

OWN = re.compile(r"\.py:\w+$")
"""How such names end."""
RULE = (
    "FACTORY is a function that takes num_classes, and image_size and in_channels where it names them, and returns a "
    "torch.nn.Module that makes logits [N, num_classes] of images [N, C, H, W]"
)
LONGEST = 300
"""Letters of an exception's message that are told."""


def own_factory(name: str) -> Callable[[int, ImageSize, int], nn.Module]:
    """The function behind FILE.py:FACTORY: (num_classes, image_size, in_channels) -> network.

    Raises UnknownArch for a file that is not there or cannot be imported, and for a factory that it lacks or that
    cannot be called so. The function raises ValueError, with the line of the file, where the factory fails or makes
    something else.
    """
    path, _, factory = name.rpartition(":")
    module = _imported(path, name)
    made = getattr(module, factory, None)
    if not callable(made):
        own = [key for key, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        raise UnknownArch(f"{name}: {path} has no function {factory} (it has {', '.join(own) or 'none'}); {RULE}")
    taken = _parameters(made, name)

    def make(num_classes: int, image_size: ImageSize, in_channels: int) -> nn.Module:
        offered = {"image_size": image_size, "in_channels": in_channels}
        if in_channels != 3 and "in_channels" not in taken:
            raise ValueError(f"{name} takes no in_channels: it is for coloured images")
        given = {key: value for key, value in offered.items() if key in taken}
        try:
            network = _on_any_device(lambda: made(num_classes=num_classes, **given))
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except (Exception, SystemExit) as error:  # a person's own function may raise anything
            raise ValueError(f"{name}: {factory} raised {in_its_file(error, path)}; {RULE}") from error
        if not isinstance(network, nn.Module):
            kind = f"the class {network.__name__}" if isinstance(network, type) else f"a {type(network).__name__}"
            raise ValueError(f"{name} made {kind}, not a torch.nn.Module; {RULE}")
        return network

    return make


def in_its_file(error: BaseException, path: str | None) -> str:
    """An exception in a line: its type, the last line of the file `path` (None: of any) that it passed, its message."""
    said = " ".join(str(error).split())[:LONGEST]
    if isinstance(error, SyntaxError) and path is not None and error.filename == path:
        return f"{type(error).__name__} in line {error.lineno}: {error.msg}"
    passed = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in passed if frame.filename == path]
    if lines:
        where = f" in line {lines[-1]}"
    else:
        where = f" in {Path(passed[-1].filename).name}, line {passed[-1].lineno}" if passed and path is None else ""
    return f"{type(error).__name__}{where}{f': {said}' if said else ''}"


def _imported(path: str, name: str) -> ModuleType:
    if not Path(path).is_file():
        raise UnknownArch(f"{name}: there is no file {path}")
    called = f"hcr_own_{Path(path).stem}_{zlib.crc32(str(Path(path).resolve()).encode()):08x}"
    spec = importlib.util.spec_from_file_location(called, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    beside = str(Path(path).resolve().parent)
    if beside not in sys.path:
        sys.path.append(beside)  # last: it may import what lies beside it, and hides nothing
    sys.modules[called] = module  # where dataclasses look a class's module up
    try:
        spec.loader.exec_module(module)
    except MemoryError:
        raise
    except (Exception, SystemExit) as error:  # a person's own file may raise anything
        del sys.modules[called]
        raise UnknownArch(f"{name}: {path} cannot be imported: {in_its_file(error, path)}; {RULE}") from error
    return module


def _parameters(made: Callable, name: str) -> set[str]:
    """Names of what a factory takes. Raises UnknownArch for one that cannot be called with num_classes alone."""
    factory = name.rpartition(":")[2]
    try:
        signature = inspect.signature(made)
    except (TypeError, ValueError):  # of native code: nobody knows
        return set()
    taken = set(signature.parameters)
    try:
        signature.bind(num_classes=1000, **dict.fromkeys(taken & {"image_size", "in_channels"}))
    except TypeError as error:
        try:
            line = f" in line {inspect.getsourcelines(made)[1]}"
        except (OSError, TypeError):
            line = ""
        raise UnknownArch(f"{name}: {factory}{signature}{line} cannot be called: {error}; {RULE}") from None
    return taken


def _on_any_device(make: Callable[[], object]) -> object:
    """What `make` makes; on a CPU and moved, where it cannot on the meta device because it asks tensors for values."""
    if torch.get_default_device().type != "meta":
        return make()
    try:
        return make()
    except Exception:  # the meta device's own, or it is raised again
        with torch.device("cpu"), torch.random.fork_rng(devices=[]):
            network = make()
    return network.to("meta") if isinstance(network, nn.Module) else network
