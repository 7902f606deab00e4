"""Where a process stood when it last looked at its device."""

from dataclasses import dataclass, field


@dataclass
class LogPoint:
    """State at the last log point of this process."""

    time: float
    step: int
    images: int = 0
    waited: float = 0.0
    totals: tuple[float, float, float] = field(default=(0.0, 0.0, 0.0))
