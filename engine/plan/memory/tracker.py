"""Counts every allocation and free of tensors that operators return, by storage: views and in-place results are free.

Works the same on real tensors and on FakeTensors. What an operator allocates and frees within itself is not seen; on a
GPU those are the workspaces and copies of engine.plan.memory.cuda.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import conv_flop_count, flop_registry

from engine.plan.memory.trace import ONCE, Affine, Category, Operators, Trace

CASTS = (torch.ops.aten._to_copy.default,)
NORMS = (torch.ops.aten.native_batch_norm.default, torch.ops.aten._native_batch_norm_legit.default)
"""Training BatchNorm: (images, weight, bias, ...) -> (images, mean, inverse deviation)."""
CONVOLUTION_BACKWARD = torch.ops.aten.convolution_backward.default
DEVICE_OF = torch.ops.prim.device.default
SUM = torch.ops.aten.add.Tensor
WITHOUT_FUNCTION_MODES = torch._C.DisableTorchFunction


def _run(function: Any, arguments: tuple, keywords: dict[str, Any]) -> Any:
    return function(*arguments, **keywords)


def _flops(function: Any, arguments: tuple, keywords: dict[str, Any], result: Any) -> int:
    """Arithmetic of an operator; 0 for those that only move bytes."""
    if function is CONVOLUTION_BACKWARD:  # torch's own formula takes a grouped convolution's weight for a dense one
        gradient, images, weight, transposed, mask = (arguments[place] for place in (0, 1, 2, 7, 10))
        return conv_flop_count(images.shape, weight.shape, gradient.shape, transposed) * sum(mask[:2])
    counter = flop_registry.get(function._overloadpacket)
    return int(counter(*arguments, **keywords, out_val=result)) if counter else 0


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    """The tensors among an operator's arguments or results: operators nest lists of them, and no deeper."""
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += [tensor for tensor in value if isinstance(tensor, Tensor)]
    return found


@dataclass
class Extra:
    """Bytes that a device allocates around an operator, beside its results.

    like  the lifetime is that of this result; None is the operator's own duration
    """

    nbytes: int
    category: Category
    like: Tensor | None = None
    capped: bool = False
    fp16_only: bool = False
    """Not there in a bf16 run, whose record otherwise is the same."""


class DeviceModel:
    """What a device allocates around an operator; this one allocates nothing."""

    def extras(self, function: Any, arguments: tuple, results: list[Tensor]) -> Iterable[Extra]:
        """Called after every operator, with all its arguments and its result tensors."""
        return ()


@dataclass
class _Storages:
    """One row a storage ever seen."""

    nbytes: list[int] = field(default_factory=list)
    category: list[int] = field(default_factory=list)
    unit: list[int] = field(default_factory=list)
    capped: list[bool] = field(default_factory=list)
    fp16_only: list[bool] = field(default_factory=list)

    def add(self, nbytes: int, category: Category, unit: int, capped: bool = False, fp16_only: bool = False) -> int:
        self.nbytes.append(nbytes)
        self.category.append(category)
        self.unit.append(unit)
        self.capped.append(capped)
        self.fp16_only.append(fp16_only)
        return len(self.nbytes) - 1


class Tracker(TorchDispatchMode):
    """Records allocations and frees while it is entered.

    batch   the recording's prime batch size; 0 takes all sizes as they are
    device  what the device allocates beside the results
    execute  (operator, arguments, keywords) -> its result; None runs it

    `hold` counts tensors that were there before; `mark` names the phase that begins; `settle` gives tensors their
    category once it is known; `trace` closes the record.
    """

    sums_in_place = True
    """Gradients that meet are added in the first one's place, as autograd does it where no dispatch mode is on."""

    def __init__(
        self, batch: int = 0, device: DeviceModel | None = None, execute: Callable[..., Any] | None = None
    ) -> None:
        super().__init__()
        self.batch, self.device, self.execute = batch, device or DeviceModel(), execute or _run
        self.storages = _Storages()
        self.events: list[int] = []  # storage + 1, negative where it is freed
        self.marks: list[tuple[int, str]] = []
        self.unit = -1
        """Unit of recompute whose forward is running; -1 outside."""
        self.fused = False
        """The operator is part of a kernel that does not write its result: it is neither counted nor timed."""
        self.running: Any = None
        """The operator that runs, or that has failed; None between operators."""
        self.unit_flops: dict[int, int] = {}
        self.forward_reads: dict[int, set[int]] = {}
        """Storage -> units (-1: none) whose operators read it in the forward pass."""
        self._known: dict[int, tuple[weakref.ref, int]] = {}
        self._sum = (-1, -1, -1)
        """(first term's row, key of the sum's storage, events by then) of the last sum of a backward pass."""
        self._names: list[str] = []
        self._flops: list[int] = []
        self._traffic: list[tuple[int, int]] = []  # what grows with the batch, and what does not
        self._start_operator = 0
        self._once: list[bool] = []

    # --- storages ----------------------------------------------------------------------------------------------

    def _index(self, tensor: Tensor) -> int | None:
        """The row of a tensor's storage, if it has been seen and is alive."""
        storage = tensor.untyped_storage()
        known = self._known.get(id(storage))
        return known[1] if known is not None and known[0]() is storage else None

    def _allocate(self, tensor: Tensor, category: Category = Category.TRANSIENT) -> int:
        storage = tensor.untyped_storage()
        key = id(storage)
        known = self._known.get(key)
        if known is not None and known[0]() is storage:
            return known[1]
        row = self.storages.add(storage.nbytes(), category, self.unit)
        self.events.append(row + 1)

        def freed(reference: weakref.ref) -> None:
            self._freed(reference, key, row)

        self._known[key] = (weakref.ref(storage, freed), row)
        return row

    def _freed(self, reference: weakref.ref, key: int, row: int) -> None:
        """A storage is gone, or handed on where it was the first term of the sum that came just before.

        autograd adds gradients that meet in the first one's place where nobody else holds it, but never while a
        dispatch mode is on (torch/csrc/autograd/input_buffer.cpp, ATen/TensorSubclassLikeUtils.h).
        """
        known = self._known.get(key)
        if known is not None and known[0] is reference:
            row = known[1]
            del self._known[key]
        term, total, then = self._sum
        if row == term and then == len(self.events):
            reference, made = self._known[total]
            if self.storages.nbytes[made] == self.storages.nbytes[term]:
                self.events.pop()
                self._known[total] = reference, term
                return
        self.events.append(-row - 1)

    def _in_backward(self) -> bool:
        """Whether autograd itself is at work: a recompute's operators record a graph."""
        phase = self.marks[-1][1] if self.marks and self.sums_in_place else ""
        return phase.startswith("backward") and not torch.is_grad_enabled()

    def _charge(self, extra: Extra) -> int | None:
        """Allocate an extra; returns its row where it ends with the operator."""
        row = self.storages.add(int(extra.nbytes), extra.category, self.unit, extra.capped, extra.fp16_only)
        self.events.append(row + 1)
        if extra.like is None:
            return row
        weakref.finalize(extra.like.untyped_storage(), self.events.append, -row - 1).atexit = False
        return None

    def hold(self, tensors: Iterable[Tensor], category: Category) -> None:
        """Count tensors that are there already."""
        for tensor in tensors:
            self.storages.category[self._allocate(tensor, category)] = category

    def settle(self, tensors: Iterable[Tensor | None], category: Category) -> None:
        """Say what tensors turned out to be, from their allocation on; those never seen are counted from now on."""
        self.hold((tensor for tensor in tensors if tensor is not None), category)

    def settle_alive(self, category: Category) -> None:
        """Say that what is alive now and has no category yet is of this one."""
        for _, row in list(self._known.values()):
            if self.storages.category[row] == Category.TRANSIENT:
                self.storages.category[row] = category

    def alive(self) -> int:
        """Bytes alive, unrounded."""
        return sum((1 if event > 0 else -1) * self.storages.nbytes[abs(event) - 1] for event in self.events)

    # --- operators ---------------------------------------------------------------------------------------------

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled in here, and the wrapper costs as much as the counting

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        if function is DEVICE_OF:  # three of four calls under FakeTensorMode: C++ asks for a fake tensor's device
            return arguments[0].fake_device
        self.running, keywords = function, keywords or {}
        result = self.execute(function, arguments, keywords)
        self.running = None
        if not self.fused:
            with WITHOUT_FUNCTION_MODES():  # each question of a tensor's size would go through autocast's rules
                self._count(function, arguments, keywords, result)
        return result

    def _count(self, function: Any, arguments: tuple, keywords: dict[str, Any], result: Any) -> None:
        """What an operator that has run allocated and did."""
        outputs = [tensor for tensor in _tensors((result,)) if tensor.device.type != "meta"]
        inputs = [*_tensors(arguments), *_tensors(keywords.values())]
        read = [row for row in map(self._index, inputs) if row is not None]
        if self.marks and self.marks[-1][1] == "forward":
            for row in read:
                self.forward_reads.setdefault(row, set()).add(self.unit)
        category = Category.TRANSIENT
        if function in CASTS and read and self.storages.category[read[0]] == Category.PARAMETERS:
            category = Category.AUTOCAST
        seen = len(self.storages.nbytes)
        rows = [self._allocate(tensor, category) for tensor in outputs]
        if function is SUM and self._in_backward() and rows == [seen] and len(read) == 2:
            self._sum = read[0], id(outputs[0].untyped_storage()), len(self.events)
        if function in NORMS and self.batch and arguments[1] is not None:
            self._correct_statistics(arguments[0], arguments[1], outputs)
        passing = [self._charge(extra) for extra in self.device.extras(function, arguments, outputs)]
        self.events += [-row - 1 for row in passing if row is not None]
        flops = _flops(function, arguments, keywords, result)
        if function._schema.is_mutable or any(row >= seen for row in rows):  # else a view: nothing moves
            self._names.append(function._overloadpacket.__name__)
            self._once.append(bool(self.marks) and self.marks[-1][1] in ONCE)
            self._flops.append(flops)
            sizes = [tensor.numel() * tensor.element_size() for tensor in (*outputs, *inputs)]
            grows = sum(size for size in sizes if self.batch and size % self.batch == 0)
            self._traffic.append((grows, sum(sizes) - grows))
            if self.unit >= 0:
                self.unit_flops[self.unit] = self.unit_flops.get(self.unit, 0) + flops

    def _correct_statistics(self, features: Tensor, weight: Tensor, outputs: list[Tensor]) -> None:
        """A BatchNorm of 16-bit images with fp32 weights keeps fp32 statistics; FakeTensors say 16-bit ones."""
        for tensor in outputs[1:]:
            if tensor.dtype == features.dtype != weight.dtype and tensor.numel():
                row = self._index(tensor)
                assert row is not None
                self.storages.nbytes[row] = tensor.numel() * weight.element_size()

    # --- the record --------------------------------------------------------------------------------------------

    def mark(self, phase: str) -> None:
        """A phase begins."""
        self.marks.append((len(self.events), phase))

    def begin(self) -> None:
        """The step that counts begins: forget the phases and operators so far, not what is alive."""
        self.marks.clear()
        self._start_operator = len(self._names)
        self.events.append(0)  # an event of its own, so that what is alive now belongs to the step

    def trace(self) -> Trace:
        """What was recorded since `begin`."""
        events = np.array(self.events, dtype=np.int64)
        first = max((i for i, event in enumerate(self.events) if event == 0), default=0)
        category = np.array([*self.storages.category, Category.CONTEXT], dtype=np.int8)
        nothing = len(self.storages.nbytes)  # the row of event 0
        operators = Operators(
            self._names[self._start_operator :],
            Affine.split(self._flops[self._start_operator :], self.batch),
            Affine(
                np.array([constant for _, constant in self._traffic[self._start_operator :]], dtype=np.float64),
                np.array([grows / (self.batch or 1) for grows, _ in self._traffic[self._start_operator :]]),
            ),
            np.array(self._once[self._start_operator :], dtype=bool),
        )
        return Trace(
            sizes=Affine.split([*self.storages.nbytes, 0], self.batch),
            category=category,
            whole_share=category == Category.INPUT,
            capped=np.array([*self.storages.capped, False]),
            fp16_only=np.array([*self.storages.fp16_only, False]),
            storage=np.where(events == 0, nothing, np.abs(events) - 1),
            sign=np.sign(events),
            start=first,
            phases=tuple(self.marks),
            operators=operators,
        )
