"""`FILE.py:FACTORY`: a network that a person's own function makes. What goes wrong in the file is told by its line."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import os
import re
import sys
import traceback
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from archs.classifier import ImageSize
from archs.registry import UnknownArch

OWN = re.compile(r"\.py:\w+$")
"""How such names end."""
RULE = (
    "FACTORY is a function that takes num_classes, and image_size and in_channels where it names them, and returns a "
    "torch.nn.Module that makes logits [N, num_classes] of images [N, C, H, W]"
)
UNFINISHED = re.compile(r"\.py(:[^:]*)?$")
"""How names end that were meant to be such, and do not say which function."""
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
    line = _line_of(path, factory)
    taken = _parameters(made, name, line)

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
            where = "" if _passed(error, path) else line  # a partial of another file's function leaves no line of this
            raise ValueError(f"{name}: {factory}{where} raised {in_its_file(error, path)}; {RULE}") from error
        if not isinstance(network, nn.Module):
            kind = f"the class {network.__name__}" if isinstance(network, type) else f"a {type(network).__name__}"
            raise ValueError(f"{name} made {kind}, not a torch.nn.Module; {RULE}")
        refuse_lazy(network, f"{name}: {factory}{line}")
        return network

    return make


def refuse_lazy(network: nn.Module, origin: str) -> None:
    """Raise ValueError for tensors whose shape the first batch would say: plans and weights come before."""
    lazy = [key for key, value in (*network.named_parameters(), *network.named_buffers()) if is_lazy(value)]
    if lazy:
        told = f"{lazy[0]} has no shape before the first batch"
        raise ValueError(f"{origin} made a network of lazy layers: {told}; give its layers their sizes; {RULE}")


def refuse_unfinished(name: str) -> None:
    """Raise UnknownArch, saying how it is written, for FILE.py without a function, and FILE:FACTORY without its ending.

    Which functions there are is read from the file, not asked of it: nothing in it is run.
    """
    path, _, factory = name.partition(":")
    if UNFINISHED.search(name) and not OWN.search(name):
        if not Path(path).is_file():
            raise UnknownArch(f"{name}: there is no file {path}; a network of one's own is FILE.py:FACTORY, and {RULE}")
        found = _factories(path)
        there = f" (such as {', '.join(f'{path}:{one}' for one in found[:5])})" if found else ""
        raise UnknownArch(f"{name}: name the function in it, {path}:FACTORY{there}; {RULE}")
    if factory and Path(f"{path}.py").is_file():
        raise UnknownArch(f"{name}: a file is named with its ending: {path}.py:{factory}")


def in_its_file(error: BaseException, path: str | None) -> str:
    """An exception in a line: its type, the last line of the file `path` (None: of any) that it passed, its message.

    Where it did not pass that file, the last line of the one that it comes from.
    """
    said = " ".join(str(error).split())[:LONGEST]
    if isinstance(error, SyntaxError) and path is not None and _same(error.filename, path):
        return f"{type(error).__name__} in line {error.lineno}: {error.msg}"
    passed = traceback.extract_tb(error.__traceback__)
    if lines := _passed(error, path):
        where = f" in line {lines[-1]}"
    else:
        where = f" in {Path(passed[-1].filename).name}, line {passed[-1].lineno}" if passed else ""
    return f"{type(error).__name__}{where}{f': {said}' if said else ''}"


def _passed(error: BaseException, path: str | None) -> list[int | None]:
    """Lines of the file `path` that an exception passed."""
    frames = traceback.extract_tb(error.__traceback__)
    return [frame.lineno for frame in frames if path is not None and _same(frame.filename, path)]


def _same(one: str | None, other: str) -> bool:
    """Whether two paths name one file: an imported file knows its own from the root on."""
    return one is not None and os.path.abspath(one) == os.path.abspath(other)  # noqa: PTH100 (links stay as named)


def _bindings(body: Iterable[ast.stmt]) -> Iterator[tuple[str, ast.stmt]]:
    """(name, statement) of what a module's statements define, also within `if`, `try` and `with`."""
    for statement in body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield statement.name, statement
            continue
        if isinstance(statement, ast.Import | ast.ImportFrom):
            yield from ((one.asname or one.name, statement) for one in statement.names)
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        yield from ((one.id, statement) for one in targets if isinstance(one, ast.Name))
        for part in ("body", "orelse", "finalbody", "handlers"):
            for inner in getattr(statement, part, ()):
                yield from _bindings(inner.body if isinstance(inner, ast.ExceptHandler) else [inner])


def _statements(path: str) -> dict[str, ast.stmt]:
    """What a file defines by name, each where it is defined last; nothing for one that cannot be read."""
    try:
        return dict(_bindings(ast.parse(Path(path).read_bytes()).body))
    except (OSError, SyntaxError, ValueError, RecursionError):
        return {}


def _line_of(path: str, factory: str) -> str:
    """` in line 3`: where a file defines it; empty where that cannot be seen."""
    found = _statements(path).get(factory)
    return f" in line {found.lineno}" if found else ""


def _factories(path: str) -> list[str]:
    """Names in a file of what takes num_classes, by its text alone."""
    found: list[str] = []
    for name, statement in _statements(path).items():
        made: object = getattr(statement, "value", statement)
        if isinstance(statement, ast.ClassDef):
            inits = [one for one in statement.body if getattr(one, "name", "") == "__init__"]
            bases = {base.id for base in statement.bases if isinstance(base, ast.Name)}
            made = inits[-1] if inits else None
            if not inits and bases & {*found}:
                found.append(name)
        if isinstance(made, ast.FunctionDef | ast.Lambda):
            taken = made.args
            if taken.kwarg or "num_classes" in {one.arg for one in (*taken.args, *taken.kwonlyargs)}:
                found.append(name)
    return found


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


def _parameters(made: Callable, name: str, line: str) -> set[str]:
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
