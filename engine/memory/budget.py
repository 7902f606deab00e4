"""Sizes as people write them: 8GiB, 500 MB."""

from __future__ import annotations

import re

from engine.config import ConfigError

UNITS = {"B": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40, "KB": 10**3, "MB": 10**6, "GB": 10**9}
GIB = 2**30


def parse_bytes(text: str, flag: str = "--gpu-memory") -> int:
    """Bytes of `8GiB`, `8.5 GiB`, `12GB` (GiB is 2^30 bytes, GB is 10^9). Raises ConfigError naming what would do."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if not found:
        raise ConfigError(f"{flag} {text}: expected a number and a unit, as in 8GiB")
    number, unit = found.groups()
    if not unit:
        raise ConfigError(f"{flag} {text}: without a unit this is {text} bytes; write {text}GiB or {text}MiB")
    if unit.upper() not in UNITS:
        raise ConfigError(f"{flag} {text}: no unit is called {unit}; there are GiB, MiB, KiB, GB, MB, KB")
    size = int(float(number) * UNITS[unit.upper()])
    if size <= 0:
        raise ConfigError(f"{flag} {text}: a budget of nothing fits nothing; write 8GiB, or auto for the card's own")
    return size


def gib(size: float) -> str:
    """`7.42 GiB`; small sizes in MiB."""
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / 2**20:.0f} MiB"
