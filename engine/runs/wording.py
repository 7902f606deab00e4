"""Figures as a reader expects them: percentages, bytes, durations, moments; a dash where there is none."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from unicodedata import normalize

DASH = "–"


def percent(share: float | None, decimals: int = 2) -> str:
    """A share in percent; a dash where there is none."""
    return DASH if share is None else f"{100 * share:.{decimals}f} %"


def number(value: float | None, decimals: int, significant: bool = False) -> str:
    """A number with `decimals` places, or significant digits; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return DASH if value is None else "not finite"
    return f"{value:.{decimals}g}" if significant else f"{value:,.{decimals}f}"


def gib(count: float | None) -> str:
    """Bytes in GiB, below half a GiB in MiB."""
    if count is None:
        return DASH
    return f"{count / 2**30:.2f} GiB" if count >= 2**29 else f"{count / 2**20:.1f} MiB"


def duration(seconds: float | None) -> str:
    """`8.4 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds is None:
        return DASH
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def moment(time: float | None) -> str:
    """Unix time as date and time in UTC."""
    try:
        return DASH if time is None else datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, OSError, ValueError):  # no date that there is
        return DASH


def measured(field: str, value: float | None) -> str:
    """A figure of the monitor with its unit, told from the field's name."""
    if value is None:
        return DASH
    if field.endswith("_bytes"):
        return gib(value)
    if field == "gpu_utilization":
        return percent(value, 0)
    if field == "process_cpu_percent":
        return f"{value / 100:.2f} cores"
    units = {"watts": "W", "celsius": "°C", "mhz": "MHz", "percent": "%"}
    return f"{value:,.0f} {units[field.rsplit('_', 1)[1]]}"


def listed(names: Sequence[str], beside: Sequence[str] = (), most: int = 8) -> str:
    """Names after one another, the rest counted. Those that would look like another one are spelt out in ASCII.

    beside  names that are shown near them: `é` and `e` with an accent put on it look alike
    """
    looks = Counter(normalize("NFKC", name) for name in {*names, *beside})
    shown = [name if looks[normalize("NFKC", name)] == 1 and name.isprintable() else ascii(name) for name in names]
    return ", ".join(shown[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def words(key: Any) -> str:
    """A field's name as words."""
    return str(key).replace("_", " ")


def value_of(key: Any, value: Any) -> str:
    """A value of the config, the plan or an event as text."""
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and str(key).endswith("_bytes"):
        return gib(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return ", ".join(f"{words(name)} {value_of(name, item)}" for name, item in value.items()) or DASH
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(value_of(key, item) for item in value) or DASH
    return str(value)
