"""A run's monitor rows in a few figures: peaks, means, energy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

FIELDS = (
    "gpu_process_bytes",
    "gpu_used_bytes",
    "torch_allocated_bytes",
    "torch_reserved_bytes",
    "process_rss_bytes",
    "gpu_utilization",
    "gpu_power_watts",
    "gpu_temperature_celsius",
    "gpu_sm_clock_mhz",
    "process_cpu_percent",
    "host_cpu_percent",
)
"""Fields of a sample that have a peak and a mean."""


class Totals:
    """Running sums over monitor rows, so that a week of samples costs no memory."""

    def __init__(self) -> None:
        self.samples = 0
        self.seconds = 0.0
        self.interval = 1.0
        self.cost_seconds = 0.0
        self.facts: dict[str, Any] = {}
        self.peaks: dict[str, float] = {}
        self.sums: dict[str, tuple[float, int]] = {}
        self._energy_ended = 0.0
        self._energy_now: float | None = None
        self._integral = 0.0
        self._measured = False
        self._before: dict[str, Any] | None = None

    def add(self, row: dict[str, Any]) -> None:
        """Take in the next row, in the order of the file."""
        if row.get("kind") == "start":
            self.facts = row
            self.interval = row.get("interval") or 1.0
            self._energy_ended += self._energy_now or 0.0
            self._energy_now, self._before = None, None
            return
        self.samples += 1
        self.cost_seconds += row.get("sample_seconds") or 0.0
        for field in FIELDS:
            if (value := row.get(field)) is not None:
                total, count = self.sums.get(field, (0.0, 0))
                self.sums[field] = (total + value, count + 1)
                self.peaks[field] = max(value, self.peaks.get(field, value))
        if (peak := row.get("torch_peak_bytes")) is not None:
            self.peaks["torch_allocated_bytes"] = max(peak, self.peaks.get("torch_allocated_bytes", peak))
        if row.get("gpu_energy_joules") is not None:
            self._energy_now, self._measured = row["gpu_energy_joules"], True
        if self._before is not None:
            elapsed = max(0.0, row["time"] - self._before["time"])
            self.seconds += elapsed
            now, before = row.get("gpu_power_watts"), self._before.get("gpu_power_watts")
            if now is not None and before is not None:
                self._integral += elapsed * (now + before) / 2
        self._before = row

    def as_dict(self) -> dict[str, Any]:
        """See `summarise`."""
        peak, means = self.peaks, {field: total / count for field, (total, count) in self.sums.items()}
        sources = ("gpu_process_bytes", "torch_reserved_bytes", "process_rss_bytes")
        source = next((field for field in sources if peak.get(field)), None)
        energy = None
        if self._measured:
            energy = self._energy_ended + (self._energy_now or 0.0)
        elif "gpu_power_watts" in peak:
            energy = self._integral
        result = {
            "samples": self.samples,
            "seconds": self.seconds,
            "gpu_name": self.facts.get("gpu_name"),
            "gpu_total_bytes": self.facts.get("gpu_total_bytes"),
            "host_total_bytes": self.facts.get("host_total_bytes"),
            "host_cores": self.facts.get("host_cores"),
            "peak_memory_bytes": peak.get(source) if source else None,
            "peak_memory_source": source,
            "energy_joules": energy,
            "cost": self.cost_seconds / self.samples / self.interval if self.samples else None,
        }
        result |= {f"peak_{field}": peak.get(field) for field in FIELDS}
        return result | {f"mean_{field}": means.get(field) for field in FIELDS}


def summarise(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """One run's monitor rows, of one session or several, in a few figures; None where nothing was read.

    samples, seconds            how much was watched (pauses between sessions are not)
    gpu_name, gpu_total_bytes, host_total_bytes, host_cores
    peak_memory_bytes           of this process: by NVML, else torch's reserved, else resident on the host;
    peak_memory_source          says which of the three fields it is
    peak_FIELD, mean_FIELD      over all samples that have it, for each of FIELDS; torch's own peak counter is part of
                                peak_torch_allocated_bytes
    energy_joules               of the board: NVML's counter, else the power integrated over time
    cost                        processor time of a sample ÷ interval
    """
    totals = Totals()
    for row in rows:
        totals.add(row)
    return totals.as_dict()
