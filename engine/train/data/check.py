"""The data at the head of a run: what an examination found earlier, else a quick part; leaks refused on request."""

from __future__ import annotations

import time

from engine.config import ConfigError, RunConfig
from engine.data.doctor.examine import examine, glance, keep, kept
from engine.data.doctor.findings import Findings
from engine.data.fingerprint import Fingerprint
from engine.data.sources.source import Source
from engine.report.data_check.told import leaks_line, lines


def checked(source: Source, data: Fingerprint, config: RunConfig) -> Findings:
    """Findings on the first rank, before anything is trained.

    Raises ConfigError for leaks where --data.on-leak is error; the data is examined as a whole then, unless it was.
    """
    found = kept(source, data)
    if config.data.on_leak == "warn":
        return found or glance(source, config.seed)
    if found is None:
        found = examined(source, data, config)
    if leaks := found.chosen("leaks"):
        named = "\n".join(
            "  " + " = ".join(f"{one.split}: {one.name}" for one in group.members) for group in leaks[:10]
        )
        more = "\n  …" if len(leaks) > 10 else ""
        raise ConfigError(
            f"{leaks_line(found)}:\n{named}{more}\n"
            "take them out of one side (hcr data shows them all), or train with --data.on-leak warn"
        )
    return found


def examined(source: Source, data: Fingerprint, config: RunConfig) -> Findings:
    """All of the data examined, and the findings kept for later runs."""
    total = data.train_images + data.val_images
    print(f"examining {total:,} images …", flush=True)
    began = time.perf_counter()
    found = examine(source, config.data.workers)
    keep(source, data, found)
    print(f"examined in {time.perf_counter() - began:.1f} s", flush=True)
    return found


def told(found: Findings, config: RunConfig) -> str:
    """The lines for the head of a run."""
    listing = "\n".join(f"  {line}" for line in lines(found, config.data.side, str(config.data.root or "")))
    warning = f"\nwarning: {leaks_line(found)}" if found.chosen("leaks") else ""
    return f"data:\n{listing}{warning}"
