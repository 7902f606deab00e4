"""Sizes as people write them: 8GiB, 500 MB."""

from __future__ import annotations

import re

UNITS = {"B": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40, "KB": 10**3, "MB": 10**6, "GB": 10**9}
"""Bytes of a unit, in capitals."""
GIB = 2**30


def parse_bytes(text: str) -> int:
    """Bytes of `8GiB`, `8.5 GiB`, `12GB` (GiB is 2^30 bytes, GB is 10^9). Raises ValueError that says what would do."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if found is None:
        raise ValueError(f"{text}: expected a number and a unit, as in 8GiB")
    number, unit = found.groups()
    if not float(number):
        raise ValueError(f"{text}: nothing fits into no memory; write 8GiB, or auto for what is free on the card")
    if float(number) > 2**60:
        raise ValueError(f"{text[:40]}: more than any memory")
    if not unit:
        raise ValueError(f"{text}: the unit is missing; write {number}GiB or {number}MiB")
    if unit.upper() not in UNITS:
        raise ValueError(f"{text}: no unit is called {unit}; there are GiB, MiB, KiB, GB, MB, KB")
    return int(float(number) * UNITS[unit.upper()])


def gib(size: float) -> str:
    """`7.42 GiB`; small sizes in MiB."""
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / 2**20:.0f} MiB"


def enough(size: int) -> int:
    """A budget to name for `size` bytes: up to the next sixteenth of a GiB."""
    return -(-size * 16 // GIB) * GIB // 16
