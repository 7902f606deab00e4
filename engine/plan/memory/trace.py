"""A recorded training step: live bytes by category as a function of the batch size, its peak and its cost.

A step is recorded once, at a prime batch size (`PRIME`): a storage whose bytes that prime divides grows with the batch,
the others do not. Every batch size is then read off the same record exactly, without another run.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import IntEnum

import numpy as np

PRIME = 10007
"""Batch size of a recording. No weight of a network here has so large a prime among its dimensions' factors."""
ROUND = 512
"""Bytes to which the CUDA caching allocator rounds a request (c10/cuda/CUDACachingAllocator.cpp, kMinBlockSize)."""


SECOND_FORWARD = "forward again"
ONCE = ("ascent", "optimizer")
"""Phases that a step has once, however many micro-batches it takes."""


class Category(IntEnum):
    """What a byte is used for."""

    PARAMETERS = 0
    GRADIENTS = 1
    OPTIMIZER = 2
    SAVED = 3
    AUTOCAST = 4
    INPUT = 5
    TRANSIENT = 6
    WORKSPACE = 7
    ROUNDING = 8
    LOADER = 9
    COMMUNICATION = 10
    CONTEXT = 11
    AVERAGE = 12
    KEPT = 13
    FRAGMENTATION = 14
    TEACHER = 15

    @property
    def label(self) -> str:
        """For tables and pictures."""
        return LABELS[self]


LABELS = {
    Category.PARAMETERS: "parameters",
    Category.GRADIENTS: "gradients",
    Category.OPTIMIZER: "optimizer",
    Category.SAVED: "saved activations",
    Category.AUTOCAST: "autocast weight copies",
    Category.INPUT: "input",
    Category.TRANSIENT: "transient",
    Category.WORKSPACE: "workspace",
    Category.ROUNDING: "allocator rounding",
    Category.LOADER: "loader",
    Category.COMMUNICATION: "communication",
    Category.CONTEXT: "context",
    Category.AVERAGE: "averaged weights",
    Category.KEPT: "weights to go back to",
    Category.FRAGMENTATION: "allocator fragmentation",
    Category.TEACHER: "teacher",
}


@dataclass(frozen=True)
class Affine:
    """Values that are `constant + slope · batch`, one a row."""

    constant: np.ndarray
    slope: np.ndarray

    def at(self, batch: int) -> np.ndarray:
        """float64 values at a batch size."""
        return self.constant + self.slope * float(batch)

    @classmethod
    def split(cls, values: list[int], batch: int) -> Affine:
        """From values at `batch`: multiples of it grow with it (a recording's PRIME), the others do not.

        `batch` 0 takes all as constant: a run on real tensors.
        """
        array = np.array(values, dtype=np.int64)
        if not batch:
            return cls(array.astype(np.float64), np.zeros(len(array)))
        grows = array % batch == 0
        return cls(np.where(grows, 0, array).astype(np.float64), np.where(grows, array // batch, 0).astype(np.float64))


@dataclass(frozen=True)
class Timeline:
    """Live bytes of one step at one batch size.

    live    float64 [categories, events]
    phases  (first event, name), in order
    """

    live: np.ndarray
    phases: tuple[tuple[int, str], ...]

    @property
    def total(self) -> np.ndarray:
        """float64 [events]: all categories together."""
        return self.live.sum(axis=0)

    @property
    def peak_at(self) -> int:
        """The event at which the most is live."""
        return int(self.total.argmax())

    @property
    def peak(self) -> int:
        """Bytes live at the peak."""
        return int(self.total[self.peak_at])

    @property
    def peak_phase(self) -> str:
        """In which phase the peak falls."""
        return [name for first, name in self.phases if first <= max(self.peak_at, self.phases[0][0])][-1]

    def by_category(self) -> dict[Category, int]:
        """Bytes at the peak; categories with none are left out."""
        column = self.live[:, self.peak_at]
        return {category: int(column[category]) for category in Category if column[category] > 0}


@dataclass
class Operators:
    """What the operators of the step did, one row each: the roofline's two sides."""

    names: list[str]
    flops: Affine
    traffic: Affine
    """Bytes read and written."""
    once: np.ndarray
    """bool: once a step and not once a micro-batch."""


@dataclass
class Trace:
    """One step as it was recorded. Sizes are in bytes, before rounding."""

    sizes: Affine
    """[storages]"""
    category: np.ndarray
    """int8 [storages], of Category."""
    whole_share: np.ndarray
    """bool [storages]: grows with the rank's whole share, not with a micro-batch (the images)."""
    capped: np.ndarray
    """bool [storages]: a workspace, at most as large as the cap."""
    fp16_only: np.ndarray
    """bool [storages]: not there in a bf16 run."""
    storage: np.ndarray
    """int32 [events]: which storage"""
    sign: np.ndarray
    """int8 [events]: +1 allocated, -1 freed."""
    start: int
    """First event of the step that counts."""
    phases: tuple[tuple[int, str], ...]
    """(first event, name) of that step."""
    operators: Operators
    units: list[Unit] = field(default_factory=list)
    """The network's units of recompute, where they were watched."""
    orders: dict = field(default_factory=dict, init=False, repr=False, compare=False)
    """What engine.plan.memory.requests made of this very record before."""

    def bytes_at(self, micro: int, share: int, cap: float = float("inf")) -> tuple[np.ndarray, np.ndarray]:
        """(bytes, what rounding adds) of every storage."""
        size = np.where(self.whole_share, self.sizes.at(share), self.sizes.at(micro))
        size = np.where(self.capped, np.minimum(size, cap), size)
        padding = -size % ROUND
        return size, padding

    def largest_workspace(self, micro: int) -> float:
        """Bytes of the largest one at a micro-batch: no cap above it changes anything."""
        return float(self.sizes.at(micro)[self.capped].max(initial=0))

    def timeline(self, micro: int, share: int | None = None, cap: float = float("inf")) -> Timeline:
        """The step with `micro` images at a time out of a rank's `share`, workspaces at most `cap` bytes."""
        size, padding = self.bytes_at(micro, share or micro, cap)
        live = np.zeros((len(Category), len(self.storage)))
        columns = np.arange(len(self.storage))
        live[self.category[self.storage], columns] = self.sign * size[self.storage]
        live[Category.ROUNDING] += self.sign * padding[self.storage]
        live = live.cumsum(axis=1)[:, self.start :]
        return Timeline(live, tuple((first - self.start, name) for first, name in self.phases))

    def peak(self, micro: int, share: int | None = None, cap: float = float("inf")) -> int:
        """Bytes live at the peak; `timeline` without the categories."""
        size, padding = self.bytes_at(micro, share or micro, cap)
        return int((self.sign * (size + padding)[self.storage]).cumsum()[self.start :].max())

    def in_bf16(self) -> Trace:
        """A record of an fp16 run as the bf16 run that differs from it by cuDNN's reserves alone."""
        there = ~self.fp16_only
        sizes = Affine(self.sizes.constant * there, self.sizes.slope * there)
        return replace(self, sizes=sizes, fp16_only=np.zeros_like(there))

    def of_micro_batches(self, size: int) -> Trace:
        """A record of constants, taken with a share of `size` images, whose share can be larger."""
        constant, slope = self.sizes.constant, self.sizes.slope
        share = Affine(np.where(self.whole_share, 0, constant), np.where(self.whole_share, constant / size, slope))
        return replace(self, sizes=share)

    def with_gradients_kept(self) -> Trace:
        """The same step where all gradients are there from the start: a later micro-batch of a step, or DDP's buckets.

        Autograd's own gradient of a parameter then lives until it has been added, at once. A second pass adds to the
        same ones.
        """
        made = self.category == Category.GRADIENTS
        gradients = set(np.flatnonzero(made).tolist())
        events = list(zip(self.storage.tolist(), self.sign.tolist(), strict=True))
        end = next((first for first, name in self.phases if name == SECOND_FORWARD), len(events))
        kept = [row for row, sign in events[self.start : end] if sign > 0 and row in gradients]
        storage, sign, moved = [], [], []
        for event, (row, way) in enumerate(events):
            moved.append(len(storage))
            mine = event >= self.start and row in gradients
            if event == self.start:
                storage += range(len(self.category), len(self.category) + len(kept))
                sign += [1] * len(kept)
            if mine and way < 0:
                continue
            storage += [row, row] if mine else [row]
            sign += [1, -1] if mine else [way]
        category = np.where(made, Category.TRANSIENT, self.category).astype(np.int8)
        category = np.concatenate([category, np.full(len(kept), Category.GRADIENTS, dtype=np.int8)])

        def again(array: np.ndarray) -> np.ndarray:
            return np.concatenate([array, array[kept]])

        start = moved[self.start] + len(kept)
        return replace(
            self,
            sizes=Affine(again(self.sizes.constant), again(self.sizes.slope)),
            category=category,
            whole_share=again(self.whole_share),
            capped=again(self.capped),
            fp16_only=again(self.fp16_only),
            storage=np.array(storage),
            sign=np.array(sign),
            start=start,
            phases=tuple((max(start, moved[first]), name) for first, name in self.phases),
        )

    def saved(self, micro: int) -> int:
        """Bytes kept from the forward pass for the backward pass, rounded, beside parameters and images."""
        size, padding = self.bytes_at(micro, micro)
        end = next(first for first, name in self.phases if name == "backward")
        alive = np.zeros(len(size), dtype=np.int64)
        np.add.at(alive, self.storage[:end], self.sign[:end])
        kept = (alive > 0) & (self.category == Category.SAVED)
        return int((size + padding)[kept].sum())


@dataclass(frozen=True)
class Unit:
    """A unit of recompute, as the forward pass met it. Bytes an image."""

    name: str
    inner: float
    """Kept for the backward pass from within the unit, without its output."""
    output: float
    flops: float
    """Of its forward pass, an image."""
    tapped: bool
    """Its output is also read from outside the chain (an auxiliary head), so a segment has to end here."""
