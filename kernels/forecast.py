"""Seconds of a launch, predicted from its counted work. A model, held to what a GPU measured; never a measurement.

A launch takes the longest of what its multiprocessors execute, what it moves and what it waits for, and a constant:

    t = max(executed / (efficiency · issue rate), bytes / (copy share · copy rate), waves · turns · turn) + launch

`executed` is the busiest of four pipes: issue (an instruction a cycle and scheduler), comparisons and integers (one in
two cycles), exponentials (one in eight), L1 (128 bytes a cycle and multiprocessor). `waves · turns` is how many turns
of loads follow one another on a multiprocessor that holds as many blocks as its registers and shared memory allow.

Efficiency, turn and launch were fitted on layers that an H200 measured: profiles/h200/kernel-model.json says how far
off each of them is. A multiprocessor's sizes are NVIDIA's (Hopper Tuning Guide, 1.4).
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kernels.machine_code import Work

SCHEDULERS = 4
REGISTERS = 65536
MOST_WARPS, MOST_BLOCKS = 64, 32
SHARED_BYTES, SHARED_A_BLOCK = 228 * 1024, 1024
L1_BYTES_A_CYCLE = 128
CYCLES_COMPARING, CYCLES_SPECIAL = 2, 8
FAMILIES = ("depthwise", "pointwise")
"""Kernels with constants of their own, by the file that they are in; all others have those of the first."""


class Constants(NamedTuple):
    """What is not counted. Assumed for sm_90 unless a file of that GPU says otherwise."""

    clock: float = 1.7e9
    """Cycles a second under load; assumed: only its product with `efficiency` was fitted."""
    multiprocessors: int = 132
    copy_rate: float = 3.0e12
    """Bytes read and written a second by a large copy: profiles/<gpu>/machine.json where it was measured."""
    copy_share: float = 0.9
    """Of it that a kernel with perfect loads reaches; assumed."""
    efficiency: tuple[float, ...] = (0.55, 0.3)
    """Instructions issued ÷ cycles, by FAMILIES."""
    turn: tuple[float, ...] = (2.0e-6, 1.5e-6)
    """Seconds from a loop's turn to the next where loads are waited for, by FAMILIES."""
    product_rate: float = 7.5e14
    """Operations a second of a large 16-bit matrix product: profiles/<gpu>/machine.json where it was measured."""
    product_share: float = 0.7
    """Of it that the library reaches for a layer's; assumed."""
    launch: float = 3.0e-6
    """Seconds a launch adds within a CUDA graph."""


class Counted(NamedTuple):
    """A launch as it was compiled: what `seconds` needs."""

    kernel: str
    """file.function"""
    programs: int
    warps: int
    """Of a program."""
    registers: int
    """Of a thread."""
    shared_bytes: int
    moved_bytes: int
    work: Work


def blocks_at_once(launch: Counted) -> int:
    """Programs that a multiprocessor holds at once."""
    registers = math.ceil(max(launch.registers, 16) / 8) * 8 * 32 * launch.warps
    shared = SHARED_BYTES // (launch.shared_bytes + SHARED_A_BLOCK)
    return max(1, min(REGISTERS // registers, MOST_WARPS // launch.warps, MOST_BLOCKS, shared))


def executed_seconds(launch: Counted, constants: Constants) -> float:
    """Of the busiest pipe, were it never idle."""
    warps = launch.programs * launch.warps
    cycles = max(
        launch.work.instructions,
        launch.work.comparing * CYCLES_COMPARING,
        launch.work.special * CYCLES_SPECIAL,
        launch.work.cached_bytes * SCHEDULERS / L1_BYTES_A_CYCLE,
    )
    return warps * cycles / (constants.multiprocessors * SCHEDULERS * constants.clock)


def seconds(launch: Counted, constants: Constants) -> float:
    """Predicted, within a CUDA graph."""
    family = next((place for place, name in enumerate(FAMILIES) if launch.kernel.startswith(name)), 0)
    waves = math.ceil(launch.programs / (constants.multiprocessors * blocks_at_once(launch)))
    return constants.launch + max(
        executed_seconds(launch, constants) / constants.efficiency[family],
        launch.moved_bytes / (constants.copy_share * constants.copy_rate),
        waves * launch.work.turns * constants.turn[family],
    )


def library_seconds(moved_bytes: int, constants: Constants, operations: int = 0) -> float:
    """Of a call of the library's that moves these bytes once, or of its product of two matrices."""
    return constants.launch + max(
        moved_bytes / (constants.copy_share * constants.copy_rate),
        operations / (constants.product_share * constants.product_rate),
    )


class Layer(NamedTuple):
    """A layer that a GPU measured: its launches, the bytes of its library calls, and its seconds."""

    name: str
    launches: Sequence[Counted]
    library_bytes: Sequence[int]
    measured: float

    def predicted(self, constants: Constants) -> float:
        """Seconds by the model."""
        own = sum(seconds(launch, constants) for launch in self.launches)
        return own + sum(library_seconds(moved, constants) for moved in self.library_bytes)


def deviation(layers: Iterable[Layer], constants: Constants) -> float:
    """Root mean square of log(predicted ÷ measured)."""
    errors = [math.log(layer.predicted(constants) / layer.measured) ** 2 for layer in layers]
    return math.sqrt(sum(errors) / len(errors))


def fitted(layers: list[Layer], known: Constants) -> Constants:
    """The constants with efficiency and turn of each family, and the launch of all, that deviate least."""
    found = known
    launches = [micro * 1e-6 for micro in (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0)]
    choices = list(itertools.product([x / 20 for x in range(5, 19)], [x * 2.5e-7 for x in range(0, 13)]))
    best = math.inf
    for launch in launches:
        constants = known._replace(launch=launch)
        for place, family in enumerate(FAMILIES):
            own = [layer for layer in layers if layer.name.startswith(family)]
            if not own:
                continue

            def with_(choice: tuple[float, float], constants: Constants = constants, place: int = place) -> Constants:
                pairs = list(zip(constants.efficiency, constants.turn, strict=True))
                pairs[place] = choice
                return constants._replace(efficiency=tuple(e for e, _ in pairs), turn=tuple(t for _, t in pairs))

            constants = min((with_(choice) for choice in choices), key=lambda one: deviation(own, one))
        total = deviation(layers, constants)
        if total < best:
            best, found = total, constants
    return found


def constants_of(gpu: str, profiles: Path) -> Constants:
    """Those of `profiles`/<gpu>: fitted where there is a kernel-model.json, with the copy rate of machine.json."""
    constants = Constants()
    model, machine = profiles / gpu / "kernel-model.json", profiles / gpu / "machine.json"
    if model.is_file():
        values: dict[str, Any] = json.loads(model.read_text(encoding="utf-8"))["constants"]
        constants = Constants(**{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()})
    if machine.is_file():
        rows = json.loads(machine.read_text(encoding="utf-8"))["rows"]
        rate = rows.get("copy", {}).get("figures", {}).get("bytes_per_second")
        products = rows.get("matmul bf16", {}).get("figures", {}).get("flops_per_second")
        cores = rows.get("facts", {}).get("figures", {}).get("multiprocessors")
        constants = constants._replace(
            copy_rate=rate or constants.copy_rate,
            product_rate=products or constants.product_rate,
            multiprocessors=cores or constants.multiprocessors,
        )
    return constants
