"""Suite `memory`: predicted against measured memory of the networks that did not fit, a row a network and budget."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

from engine.bench.instrument.measure import fair_settings
from engine.bench.instrument.options import Options
from engine.bench.instrument.peers import need
from engine.bench.instrument.rows import Row
from engine.runs.provenance import ROOT
from engine.step.plan import Hardware, choose_precision

NETWORKS = ("inceptionv3", "darknet53", "resnext50", "inceptionv3_fullres", "resnext29_2x64d")
BUDGETS = (8, 12, 16)
"""GiB of the cards that the networks did not run on."""


def rows(options: Options) -> Iterator[Row]:
    """Every network on every budget, the larger budget first: more of them have a plan."""
    hardware, tiny = Hardware.detect(), options.dry_run
    for budget in reversed(BUDGETS[-1:] if tiny else BUDGETS):
        for arch in options.archs or (("resnet18",) if tiny else NETWORKS):
            settings = {
                "arch": arch,
                "budget_gib": budget,
                "precision": options.precision or choose_precision("auto", hardware),
                "batch_size": options.batch_size or (4 if tiny else 128),
                "image_size": options.image_size or (32 if tiny else 224),
                "steps": 1 if tiny else 20,
            }
            yield Row(f"{arch} {budget} GiB", settings, partial(measure, settings, hardware), seconds=30.0)


def measure(settings: dict[str, Any], hardware: Hardware, deadline: float) -> dict[str, Any]:
    """`memory_rows.memory_row`. Raises NotAvailable where the planner has none, or without accelerate.

    On a GPU in a process of its own: each budget has its cap on workspaces, which cuDNN may read once a process.
    """
    need("accelerate")
    need("engine.bench.suites.memory_rows")
    row = apart(settings) if hardware.type == "cuda" else figures(settings, hardware)
    if not row["fits"]:
        return row | {"summary": f"no plan fits; the least takes {row['least_bytes'] / 2**30:.2f} GiB"}
    chosen = row["chosen"]
    told = chosen.get("out_of_memory") or f"predicted ÷ measured {chosen.get('predicted_over_measured') or 'unknown'}"
    return row | {"summary": f"{told}, chosen ÷ best candidate {row['chosen_over_best']}"}


def figures(settings: dict[str, Any], hardware: Hardware) -> dict[str, Any]:
    """The row that `settings` describes, measured here."""
    from engine.bench.suites.memory_rows import memory_row

    sizes = {key: settings[key] for key in ("batch_size", "image_size", "steps")}
    budget = int(settings["budget_gib"] * 2**30)
    return memory_row(settings["arch"], budget, settings["precision"], hardware, **sizes)


def apart(settings: dict[str, Any]) -> dict[str, Any]:
    """The same from a process of its own. Raises RuntimeError with its last words where it fails."""
    command = [sys.executable, "-m", "engine.bench.suites.memory_suite", json.dumps(settings)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        words = done.stderr.strip().splitlines() or [f"ended with {done.returncode}"]
        raise RuntimeError(words[-1][:300])
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    with fair_settings():
        print(json.dumps(figures(json.loads(sys.argv[1]), Hardware.detect())))
