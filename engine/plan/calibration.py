"""What earlier runs measured against what was predicted, for each GPU and torch version, in the user's cache folder.

A run on a GPU adds three figures: the allocator's peak of its steps over the predicted one (workspaces), what the
allocator reserved over its replay (fragmentation), and what the process holds outside the allocator beside what was
assumed (context). A plan is corrected by what its own network and policy measured; else by its network; else by the
median of the networks, where three or more are known. So one outlier weighs on no other network. Corrections only
enlarge: a prediction that was too high stays the safe one.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import torch

from engine.config.byte_sizes import GIB, gib
from engine.runs.cache import cache_folder

logger = logging.getLogger("hcr")

KEPT = 200
"""Newest measurements kept for a GPU and a torch version."""
LAST = 3
"""Newest measurements of one network and policy that count: the largest of them."""
NETWORKS = 3
"""From how many other networks on their median is taken for one that was not measured."""
SMALLEST = GIB // 2
"""Bytes: a smaller peak is mostly what does not grow, and says little of others."""
PLAUSIBLE = (0.5, 2.0)
"""A ratio outside is another process's or a broken file's, not the model's error."""


@dataclass(frozen=True)
class Measurement:
    """One run's."""

    arch: str
    precision: str
    policy: str
    """As `Policy.describe` says it."""
    workspace: float
    """Measured over predicted peak of the allocator, without earlier corrections."""
    fragmentation: float = 1.0
    """Measured over replayed peak of what the allocator reserved."""
    context: int = 0
    """Bytes outside the allocator beside what was assumed."""


@dataclass(frozen=True)
class Factors:
    """What one plan is multiplied by, and where that comes from."""

    workspace: float = 1.0
    fragmentation: float = 1.0
    context: int = 0
    source: str = ""

    def describe(self) -> str:
        """For the run's lines; empty where nothing is changed."""
        parts = [f"allocator × {self.workspace:.3f}"] if self.workspace > 1 else []
        parts += [f"reserved × {self.fragmentation:.3f}"] if self.fragmentation > 1 else []
        parts += [f"context + {gib(self.context)}"] if self.context else []
        return f"corrected by earlier runs ({self.source}): {', '.join(parts)}" if parts else ""


@dataclass(frozen=True)
class Correction:
    """What is known of one GPU under one torch version."""

    key: str
    measured: tuple[Measurement, ...] = ()
    """Oldest first."""

    def factors(self, arch: str, precision: str, policy: str) -> Factors:
        """What a plan of this network is corrected by."""
        own = [one for one in self.measured if (one.arch, one.precision, one.policy) == (arch, precision, policy)]
        if own:
            last = own[-LAST:]
            return _factors(last, max, f"{len(last)} of this network and policy")
        if network := [one for one in self.measured if one.arch == arch]:
            return _factors(network, median, f"{len(network)} of this network")
        networks = {one.arch for one in self.measured}
        if len(networks) < NETWORKS:
            return Factors()
        typical = [_typical([one for one in self.measured if one.arch == name]) for name in sorted(networks)]
        return _factors(typical, median, f"the median of {len(networks)} networks")

    def to_text(self) -> str:
        """For another process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> Correction:
        """What `to_text` gave."""
        found = json.loads(text)
        return cls(found["key"], tuple(Measurement(**row) for row in found["measured"]))

    def describe(self) -> str:
        """For --explain."""
        if not self.measured:
            return f"measured on {self.key}: nothing yet; predictions are used as they are"
        ratios = [one.workspace for one in self.measured]
        networks = len({one.arch for one in self.measured})
        return (
            f"measured on {self.key}: {len(ratios)} runs of {networks} networks, allocator's peak ÷ predicted "
            f"{min(ratios):.3f}-{max(ratios):.3f}"
        )


def _factors(runs: Sequence[Measurement], choose: Callable, source: str) -> Factors:
    """The largest of some runs, or their median; never smaller than what changes nothing."""
    workspace, fragmentation, context = (
        float(choose([getattr(one, name) for one in runs])) for name in ("workspace", "fragmentation", "context")
    )
    return Factors(max(1.0, workspace), max(1.0, fragmentation), max(0, int(context)), source)


def _typical(runs: Sequence[Measurement]) -> Measurement:
    """A network's median run, figure by figure."""
    figures = {name: median([getattr(one, name) for one in runs]) for name in ("workspace", "fragmentation")}
    return replace(runs[-1], **figures, context=int(median([one.context for one in runs])))


def calibration_file() -> Path:
    """Where measurements are kept: memory-calibration.json in $HCR_CACHE, or in ~/.cache/hcr."""
    return cache_folder() / "memory-calibration.json"


def key_of(gpu: str) -> str:
    """`NVIDIA H100, torch 2.15`: patch releases share their measurements."""
    return f"{gpu}, torch {'.'.join(torch.__version__.split('.')[:2])}"


def _read() -> dict[str, list[dict]]:
    """All measurements; a file that is missing or damaged holds none, nor does one of an older form."""
    try:
        found = json.loads(calibration_file().read_text(encoding="utf-8"))
        return {str(key): [asdict(Measurement(**row)) for row in rows] for key, rows in found.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        logger.info("%s is left aside: it cannot be read (%s)", calibration_file(), error)
        return {}


def correction_for(gpu: str) -> Correction:
    """What earlier runs on a GPU of this name say."""
    key = key_of(gpu)
    return Correction(key, tuple(filter(_plausible, (Measurement(**row) for row in _read().get(key, [])))))


def _plausible(one: Measurement) -> bool:
    low, high = PLAUSIBLE
    return low <= one.workspace <= high and low <= one.fragmentation <= high and 0 <= one.context < 4 * GIB


def add_measurement(gpu: str, measured: Measurement, peak: int) -> Correction:
    """Record a run whose allocator's peak was `peak` bytes; returns what is known now.

    Small runs and implausible figures are left out. A folder that cannot be written to costs the measurement, not the
    run.
    """
    from engine.runs.door import atomic_file

    if peak < SMALLEST or not _plausible(measured):
        return correction_for(gpu)
    known = _read()
    known[key_of(gpu)] = [*known.get(key_of(gpu), []), asdict(measured)][-KEPT:]
    path = calibration_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        logger.info("the measured peak is not kept: %s cannot be written (%s)", path, error)
    return correction_for(gpu)
