"""Operators on FakeTensors that have run before on the same shapes: their results are made, not inferred again.

A recording is mostly the same few hundred operators, for every policy and twice for a recompute. FakeTensorMode infers
each anew, or hashes all that could matter; what matters here is shapes, strides, dtypes and plain arguments. An
operator is replayed only where its first run showed that it is safe: new storages, or nothing changed but contents.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

CPU = torch.device("cpu")
PLAIN = (int, float, bool, str, type(None), torch.dtype, torch.layout, torch.device, torch.memory_format)


class Made(NamedTuple):
    """A result, in a storage of its own that it fills, or in an argument's."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    offset: int
    base: int
    """Place of the argument whose storage it shares; -1 for its own."""


SELF = "argument 0"
"""The result is the first argument: an operator in place."""


class Replay:
    """Runs operators under a FakeTensorMode, those that it knows from memory."""

    def __init__(self, mode: FakeTensorMode) -> None:
        self.mode = mode
        self.known: dict[tuple, Any] = {}
        """(operator, signatures) -> what to make of it; absent or None: run it."""
        self.attributes: dict[str, Any] = {}
        """What a FakeTensor of this mode knows beside its shape; its constructor is slow."""

    def __call__(self, function: Any, arguments: tuple, keywords: dict[str, Any]) -> Any:
        """The operator's result."""
        inputs = (*arguments, *keywords.values())
        with torch._C.DisableTorchFunction():
            signatures = _signatures(inputs)
            key = None if signatures is None else (function, *keywords, *signatures)
            recipe = self.known.get(key)
            if recipe is SELF:
                return arguments[0]
            if recipe is not None:
                made = [None if part is None else self._make(part, inputs) for part in recipe[1]]
                return made[0] if recipe[0] else tuple(made)
        if key is None:
            return function(*arguments, **keywords)
        result = function(*arguments, **keywords)
        if key not in self.known:
            # what an operator did to its arguments' shapes would be left out
            self.known[key] = self._recipe(result, inputs) if _signatures(inputs) == signatures else None
        return result

    def _make(self, part: Made, inputs: Sequence[Any]) -> Tensor:
        with torch._C._DisableTorchDispatch():
            empty = torch.empty_strided(part.shape, part.stride, dtype=part.dtype, device="meta")
            if part.base >= 0:
                empty.set_(inputs[part.base].untyped_storage(), part.offset, part.shape, part.stride)
            if not self.attributes:
                self.attributes = dict(FakeTensor(self.mode, empty, CPU).__dict__)
            fake = Tensor._make_subclass(FakeTensor, empty, False, dispatch_device=True, device_for_backend_keys=CPU)
            torch._C._set_throw_on_mutable_data_ptr(fake)
        fake.__dict__.update(self.attributes)
        return fake

    def _recipe(self, result: Any, inputs: Sequence[Any]) -> Any:
        """How to make `result` again; None where that cannot be told from shapes."""
        if isinstance(result, Tensor) and result is inputs[0]:
            return SELF
        single = not isinstance(result, tuple)
        parts = [result] if single else list(result)
        bases = {id(one.untyped_storage()): place for place, one in enumerate(inputs) if isinstance(one, Tensor)}
        listed = [one for many in inputs if isinstance(many, list | tuple) for one in many]
        taken = {id(one.untyped_storage()) for one in listed if isinstance(one, Tensor)}
        recipes: list[Made | None] = []
        for part in parts:
            if part is None:
                recipes.append(None)
                continue
            if type(part) is not FakeTensor or part.device != CPU or part.constant is not None:
                return None
            storage = part.untyped_storage()
            base = bases.get(id(storage), -1)
            whole = part.storage_offset() == 0 and storage.nbytes() == _extent(part) * part.element_size()
            if id(storage) in taken or (base < 0 and not whole):
                return None
            if base < 0:
                taken.add(id(storage))
            recipes.append(Made(part.shape, part.stride(), part.dtype, part.storage_offset(), base))
        return single, recipes


def _extent(tensor: Tensor) -> int:
    """Elements from a tensor's first to its last in memory."""
    if not tensor.numel():
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _signatures(values: Sequence[Any]) -> list[tuple] | None:
    """What decides an operator's result, an entry a value; None where a value's kind is not known."""
    found: list[tuple] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append((value.shape, value.stride(), value.dtype, value.storage_offset(), value.device))
        elif isinstance(value, PLAIN):
            found.append((type(value), value))  # 1, 1.0 and True are equal and promote differently
        elif isinstance(value, list | tuple):
            inner = _signatures(value)
            if inner is None:
                return None
            found.append(tuple(inner))
        else:
            return None
    return found
