"""Is the rate that `--find-lr` suggests a good one? It is compared with nine others on the digits, network by network.

`python -m engine.bench.lr_finder_check` measures all of NETWORKS that profiles/<machine>/lr-finder.json does not have
yet; names after it, those alone, anew. Each network's ten trainings and its sweep run in one process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.bench.instrument.record import Store
from engine.runs.provenance import ROOT

NETWORKS = {
    "convnet_bn": 16,
    "resnet18": 16,
    "se_resnet18": 16,
    "mobilenetv1_025": 32,
    "mobilenetv2": 32,
    "shufflenet_g2": 32,
    "squeezenet1_1": 32,
    "densenet40": 16,
    "efficientnet_b0": 32,
    "gmlp_d6": 32,
}
"""Ten families, each with the side of its images in pixels: so small that a CPU core is done in minutes."""
GRID = tuple(round(10 ** (exponent / 2), 10) for exponent in range(-10, -1))
"""Nine learning rates from 1e-5 to 0.1, each √10 above the one before."""
WITHIN = 0.01
"""By how much accuracy with the suggested rate may be below the grid's best."""
FLAGS = ("--config", "configs/digits.yaml", "--precision", "fp32", "--log.no-plots", "--log.monitor-interval", "0")


def measure(name: str, size: int) -> dict[str, Any]:
    """Curve and suggestion of the sweep, and the best val accuracy with each rate of GRID and with that one."""
    from engine.config import parse
    from engine.runs.records import read_records
    from engine.train.lr_finder import Range, find_lr
    from engine.train.run import train

    flags = ["--arch", name, *FLAGS, "--image-size", str(size)]
    with tempfile.TemporaryDirectory() as scratch:
        found = Path(scratch) / "found"
        find_lr(parse([*flags, "--output", str(found)]), Range())
        curve = json.loads((found / "find-lr.json").read_text())
        rates = [*GRID, *([curve["suggested_lr"]] if curve["suggested_lr"] else [])]
        reached = []
        for place, rate in enumerate(rates):
            _forget()
            run = Path(scratch) / f"run{place}"
            train(parse([*flags, "--lr", str(rate), "--output", str(run)]))
            rows = [row for row in read_records(run / "metrics.jsonl") if row["kind"] == "epoch"]
            reached.append(max((row["val_accuracy"] for row in rows), default=0.0))
    return {
        "command": f"python launch/train.py {' '.join(flags)}",
        "suggested_lr": curve["suggested_lr"],
        "sureness": curve["sureness"],
        "accuracy": reached[len(GRID)] if len(reached) > len(GRID) else None,
        "grid": dict(zip(map(str, GRID), reached, strict=False)),
        "curve": {"rates": curve["rates"], "losses": curve["losses"], "each": curve["each"]},
    }


def _forget() -> None:
    """accelerate keeps its state in class attributes, one a process; here each training begins anew."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()


def short_of_best(figures: dict[str, Any]) -> float:
    """How far accuracy with the suggested rate is below the best of the grid; 1 where nothing was suggested."""
    if figures.get("accuracy") is None:
        return 1.0
    return max(figures["grid"].values()) - figures["accuracy"]


def main(arguments: Sequence[str]) -> int:
    """Measure, write after each network; returns 1 where a suggestion is worse than WITHIN."""
    parser = argparse.ArgumentParser(description="Compare --find-lr's suggestion with a grid of nine rates.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="these alone, anew")
    parser.add_argument("--one", choices=NETWORKS, help="measure one in this process and print its figures as JSON")
    given = parser.parse_args(arguments)
    if given.one:
        print(json.dumps(measure(given.one, NETWORKS[given.one])))
        return 0
    if unknown := [name for name in given.names if name not in NETWORKS]:
        parser.error(f"{unknown[0]} is none of {', '.join(NETWORKS)}")
    store = Store("lr-finder")
    for name in given.names or [name for name in NETWORKS if name not in store.rows]:
        began = time.perf_counter()
        command = [sys.executable, "-m", "engine.bench.lr_finder_check", "--one", name]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
        figures = json.loads(done.stdout.splitlines()[-1])
        settings = {"image_size": NETWORKS[name], "flags": list(FLAGS)}
        store.put(name, settings, "measured", time.perf_counter() - began, {"figures": figures})
        print(f"{name:<16} {told(figures)}", flush=True)
    for row in store.rows.values():
        row["figures"]["summary"] = told(row["figures"])
    store.write()
    worst = max((short_of_best(row["figures"]) for row in store.rows.values()), default=1.0)
    print(f"{len(store.rows)} of {len(NETWORKS)} measured; at worst {100 * worst:.2f} points below the grid's best")
    return int(worst > WITHIN)


def told(figures: dict[str, Any]) -> str:
    """One network's result in words."""
    grid = figures["grid"]
    best = max(grid, key=lambda rate: grid[rate])
    reached = "nothing" if figures["accuracy"] is None else f"{figures['accuracy']:.2%}"
    rate = f"--lr {figures['suggested_lr']} ({figures['sureness']})"
    return f"{reached} with the suggested {rate}, best of the grid {grid[best]:.2%} at {best}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
