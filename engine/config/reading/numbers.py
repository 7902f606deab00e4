"""Numbers that no run can mean: not finite, or beyond what its arithmetic holds. Paths that no file system takes."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from engine.config.checks import require
from engine.config.pixels.image_size import LARGEST_SIDE

MOST = 2**31 - 1
"""Of whole numbers that nothing else limits."""
LARGEST = {
    "image_size": LARGEST_SIDE,
    "progressive_from": LARGEST_SIDE,
    "progressive_stages": 10_000,
    "workers": 1024,
    "prefetch": 1024,
    "readers": 1024,
    "threads": 4096,
    "batch_size": 2**24,
    "micro_batch_size": 2**24,
    "epochs": 10**6,
    "width": 64,
    "warmup_epochs": 10**6,
    "monitor_interval": 86_400,
    "seed": 2**63 - 1,
}
"""By field; far above what is of use, far below what ends in an error from deep inside."""


def refuse_absurd(group: Any, flag_of: dict[str, str] | None = None, prefix: str = "") -> None:
    """Raise ConfigError naming the first field of a dataclass, or of those in it, that cannot be meant.

    flag_of  how fields are called on the command line, where that is not `--GROUP.FIELD`
    """
    for field in dataclasses.fields(group):
        value = getattr(group, field.name)
        if dataclasses.is_dataclass(value):
            refuse_absurd(value, flag_of, f"{field.name}.")
            continue
        name = f"{prefix}{field.name}"
        flag = (flag_of or {}).get(name, f"--{name.replace('_', '-')}")
        for part in value if isinstance(value, tuple) else (value,):
            _refuse_number(part, field.name, flag)
            if isinstance(part, str | Path):
                _refuse_text(str(part), flag)


def _refuse_number(value: Any, name: str, flag: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    require(math.isfinite(value), f"{flag} must be a finite number, not {value}")
    most = LARGEST.get(name, MOST if isinstance(value, int) else math.inf)
    require(abs(value) <= most, f"{flag} can be at most {most:,}, not {value:.6g}")


def _refuse_text(text: str, flag: str) -> None:
    require("\0" not in text, f"{flag} holds a null character, which no name can have")
    size = max((len(part.encode("utf-8", "surrogateescape")) for part in text.split("/")), default=0)
    require(size <= 255 and len(text) <= 4000, f"{flag} is too long for a name: {text[:40]}…")
