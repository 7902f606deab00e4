"""Machine code of a kernel (SASS, as cuobjdump lists it): its loops, and how often a warp executes each instruction.

How often a loop turns is not in the code. `TURNS` knows it for each kernel from the sizes of its launch; what is
outside of every loop runs once. Branches that are rarely taken (a slow division) are laid out behind the end: they
count as executed once, which is a little too much.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_.]+)\s*([^;]*);")
WARP = 32
ADDERS = ("FFMA", "FMUL", "FADD", "HFMA2", "HADD2", "HMUL2", "IMAD", "MOV", "NOP", "BRA", "BAR", "S2R", "EXIT")
"""Opcodes that do not go through the half-rate pipe of integers and comparisons."""
MEMORY = ("LDG", "STG", "LDS", "STS", "LDGSTS", "LDL", "STL", "LDSM", "LDC", "ULDC")


class Instruction(NamedTuple):
    """One line of a listing: its address, opcode with suffixes, and operands."""

    address: int
    opcode: str
    operands: str


class Work(NamedTuple):
    """What one warp of a launch executes, and how long its longest chain of loop turns is."""

    instructions: float
    """All of them."""
    comparing: float
    """Those of the pipe for integers, comparisons, selections and conversions, which takes one in two cycles."""
    special: float
    """Exponentials and reciprocals (MUFU), one in eight cycles."""
    cached_bytes: float
    """Through L1 or shared memory, all 32 lanes."""
    turns: float
    """Turns of loops that load, and 1 for the code around them: each may wait for memory."""


def read(listing: str) -> list[Instruction]:
    """The instructions of a `cuobjdump --dump-sass` of one kernel."""
    return [Instruction(int(m[1], 16), m[2], m[3]) for m in map(LINE.match, listing.splitlines()) if m]


def loops(code: list[Instruction]) -> list[tuple[int, int]]:
    """First and last address of each loop's body, outer ones first: a branch to an earlier address ends one."""
    found: dict[int, int] = {}
    for address, opcode, operands in code:
        target = re.search(r"0x([0-9a-f]+)", operands) if opcode.startswith("BRA") else None
        if target and int(target[1], 16) < address:
            head = int(target[1], 16)
            found[head] = max(address, found.get(head, 0))
    return sorted(found.items())


def times_executed(code: list[Instruction], turns: list[float]) -> list[float]:
    """How often a warp executes each instruction; `turns` of the loops from the outermost in.

    Of loops side by side the longest is the one meant; the others (what is left over of an unrolled one) turn once.
    """
    found = loops(code)
    times = [1.0] * len(code)
    for depth, count in enumerate(turns):
        inside = [one for one in found if sum(o[0] <= one[0] and one[1] <= o[1] for o in found) == depth + 1]
        if not inside:
            break
        first, last = max(inside, key=lambda one: one[1] - one[0])
        times = [t * count if first <= one.address <= last else t for t, one in zip(times, code, strict=True)]
    return times


def work(code: list[Instruction], turns: list[float]) -> Work:
    """What a warp does, by `times_executed`."""
    total: Counter[str] = Counter()
    for instruction, times in zip(code, times_executed(code, turns), strict=True):
        root = instruction.opcode.partition(".")[0]
        total["all"] += times
        if root == "MUFU":
            total["special"] += times
        elif root in MEMORY:
            width = re.search(r"\.(U8|S8|U16|S16|64|128)\b", instruction.opcode)
            each = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}[width[1]] if width else 4
            total["bytes"] += 0 if root in ("LDC", "ULDC") else times * each * WARP
        elif not root.startswith(("U", "HGMMA", "HMMA")) and root not in ADDERS:
            total["comparing"] += times
    waits = 1 + (math.prod(turns) if loops(code) else 0)
    return Work(total["all"], total["comparing"], total["special"], total["bytes"], waits)


def _walked(values: Mapping[str, Any], grid: tuple[int, ...], tiles: int, axis: int = 0) -> float:
    return max(1.0, tiles / grid[axis])


def _up(value: int, divisor: int) -> int:
    return -(-value // divisor)


def _walked_cells(v: Mapping[str, Any], grid: tuple[int, ...]) -> float:
    """Tiles that a walker of the depthwise backward takes."""
    walkers = grid[0] // _up(v["C"], v["BC"])
    return max(1.0, v["N"] * _up(_up(v["H"], v["S"]), v["R"]) * _up(_up(v["W"], v["S"]), v["BW"] * v["CW"]) / walkers)


def _cells(v: Mapping[str, Any]) -> int:
    """Tiles of cells of a launch of the depthwise backward by rows."""
    return v["N"] * _up(_up(v["H"], v["S"]), v["R"]) * _up(_up(v["W"], v["S"]), v["BW"])


def _columns_of_taps(v: Mapping[str, Any]) -> int:
    """Output columns that reach a cell."""
    return (v["S"] - 1 + v["PW"]) // v["S"] + (v["K"] - 1 - v["PW"]) // v["S"] + 1


def _rows(v: Mapping[str, Any]) -> int:
    """Row tiles of a pointwise launch."""
    gated = v.get("GATED", False)
    return v["M"] // v["P"] * _up(v["P"], v["BM"]) if gated else _up(v["M"], v["BM"])


TURNS: dict[str, Callable[[Mapping[str, Any], tuple[int, ...]], list[float]]] = {
    "depthwise.forward_kernel": lambda v, grid: [v["STEPS"]],
    "depthwise_backward.input_and_weight_kernel": lambda v, grid: [_walked_cells(v, grid)],
    "depthwise_backward_by_rows.input_kernel": lambda v, grid: [_walked(v, grid, _cells(v)), _columns_of_taps(v)],
    "depthwise_backward_by_rows.weight_kernel": lambda v, grid: [
        _walked(v, grid, v["N"] * v["OH"] * _up(_up(v["W"], v["S"]), v["BW"]))
    ],
    "pointwise.forward_kernel": lambda v, grid: (
        [v["TAKEN"]] if v["TAKEN"] > 1 else [v["SLICES"] * _up(v["L"], v["BL"])]
    ),
    "pointwise_backward.input_kernel": lambda v, grid: [
        *([_walked(v, grid, _rows(v) * v["SLICES"] * _up(v["L"], v["BL"]))] if v["AFFINE"] and not v["GATED"] else []),
        _up(v["OG"], v["BO"]),
    ],
    "pointwise_backward.weight_kernel": lambda v, grid: [_walked(v, grid, _rows(v), 1)],
    "pointwise_backward.one_pass_kernel": lambda v, grid: [_walked(v, grid, _rows(v))],
    "partials.finish_kernel": lambda v, grid: [_up(max(v["T"], v["SUMS"]), v["BT"])],
    "norm_act.backward_kernel": lambda v, grid: [_walked(v, grid, _up(v["M"], v["STEPS"] * v["BM"]))],
    "squeeze_excite.sums_kernel": lambda v, grid: [_up(v["STEPS"], 2)],
    "excitation.excite_kernel": lambda v, grid: [2 * _up(v["C"], v["BC"]), _up(v["TILES"], v["BT"])],
    "excitation.image_kernel": lambda v, grid: [2 * _up(v["C"], v["BC"]), _up(v["TILES"], v["BT"])],
    "excitation.images_kernel": lambda v, grid: [_up(v["N"], v["BN"])],
}
"""Turns of a kernel's loops, the outermost first, from its scalar arguments and grid; the others have no loop.

Of two loops side by side one is counted, with the turns of both.
"""


def turns_of(kernel: str, values: Mapping[str, Any], grid: tuple[int, ...]) -> list[float]:
    """By `TURNS`; none for a kernel without a loop."""
    return TURNS[kernel](values, grid) if kernel in TURNS else []
