"""Suite `runs`: what real runs reached, read from their folders."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from engine.bench.instrument.options import Options
from engine.bench.instrument.rows import Row, missing_row
from engine.runs.records import read_records


def rows(options: Options) -> Iterator[Row]:
    """A row a folder that --runs names."""
    if not options.runs:
        yield missing_row("runs", "finished runs are needed: --runs FOLDER ...")
    for folder in options.runs:
        yield Row(folder.resolve().name, {"folder": str(folder)}, partial(_figures, folder), seconds=1.0)


def _figures(folder: Path, deadline: float) -> dict[str, Any]:
    found = run_figures(folder)
    tested = f", {found['test_accuracy']:.2%} test" if "test_accuracy" in found else ""
    return found | {"summary": f"{found['best_val_accuracy']:.2%}{tested} in {found['seconds']:.0f} s"}


def run_figures(folder: Path) -> dict:
    """Command, accuracy by epoch and of a test split, speed and time of the finished run in `folder`.

    Raises ValueError where the run has not finished.
    """
    rows = read_records(folder / "metrics.jsonl")
    events = {row["event"]: row for row in rows if row["kind"] == "event"}
    epochs = [row for row in rows if row["kind"] == "epoch"]
    if "finished" not in events:
        raise ValueError(f"{folder} is not a finished run")
    start = events["start"]
    tests = [row for row in rows if row["kind"] == "test"]
    return {
        "command": start["command"],
        "device": start["device"],
        "threads": start["threads"],
        "ranks": start["ranks"],
        "epochs": len(epochs),
        "train_images": epochs[-1]["train_images"],
        "val_images": epochs[-1]["val_images"],
        "val_accuracy": [round(row["val_accuracy"], 4) for row in epochs],
        "best_val_accuracy": round(max(row["val_accuracy"] for row in epochs), 4),
        **({"test_accuracy": round(tests[-1]["test_accuracy"], 4)} if tests else {}),
        "images_per_second": [row["images_per_second"] for row in epochs],
        "seconds": events["finished"]["seconds"],
        "startup_seconds": start["startup_seconds"],
        "unreadable_images": events["finished"]["unreadable_images"],
    }
