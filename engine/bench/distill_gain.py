"""What a student gains by a teacher on the digits, and what kept logits save: `python -m engine.bench.distill_gain`.

A ResNet-18 is trained once at 16 pixels, on all training images. A small network is trained on 64 of them, alone and
beside it, by one schedule: with all of them it is as good as its teacher. What kept logits save is measured on all of
them, where an epoch is long enough to be timed. The figures go to profiles/<machine>/distill.json.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from engine.bench.instrument.record import Store

FLAGS = ("--config", "configs/digits.yaml", "--image-size", "16", "--precision", "fp32", "--log.no-plots")
TEACHER = ("--arch", "resnet18", "--epochs", "4")
STUDENT = ("--arch", "convnet_bn")
FEW = ("--data.limit", "64", "--epochs", "30")
TIMED = ("--epochs", "3")
LESSON = ("--distill.weight", "0.9", "--distill.temperature", "3")
SEEDS = (0, 1, 2)
GAIN, SAVED = 0.01, 0.65
"""Least gain in accuracy over three seeds, and largest share of the time that kept logits may take."""


def trained(folder: Path, *flags: str) -> dict[str, Any]:
    """Best val accuracy, losses and seconds of training of a run."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    from engine.config import parse
    from engine.runs.records import read_records
    from engine.train.run import train

    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()
    if train(parse([*FLAGS, "--log.monitor-interval", "0", *flags, "--output", str(folder)])):
        raise RuntimeError(f"the run in {folder} failed")
    rows = read_records(folder / "metrics.jsonl")
    epochs = [row for row in rows if row["kind"] == "epoch"]
    return {
        "accuracy": max(row["val_accuracy"] for row in epochs),
        "losses": [row["loss"] for row in rows if row["kind"] == "step"],
        "seconds": sum(row["seconds"] for row in epochs[1:]),
    }


def measure(scratch: Path) -> dict[str, Any]:
    """All runs; accuracies by way and seed, seconds of the epochs behind the first."""
    teacher = trained(scratch / "teacher", *TEACHER)
    lesson = ("--distill", str(scratch / "teacher"), *LESSON)

    def students(way: str, *flags: str) -> list[dict[str, Any]]:
        return [trained(scratch / f"{way}-{seed}", *STUDENT, "--seed", str(seed), *flags) for seed in SEEDS]

    alone, taught = students("alone", *FEW), students("taught", *FEW, *lesson)
    pairs = []
    for seed in SEEDS:
        flags = (*STUDENT, "--seed", str(seed), *TIMED, *lesson)
        pairs.append(tuple(trained(scratch / f"{way}-{seed}", *flags) for way in ("computed", "kept")))
    return {
        "teacher": teacher["accuracy"],
        "accuracy": {"alone": [run["accuracy"] for run in alone], "taught": [run["accuracy"] for run in taught]},
        "seconds": {way: [pair[place]["seconds"] for pair in pairs] for place, way in enumerate(("computed", "kept"))},
        "losses are bit-equal": all(computed["losses"] == kept["losses"] for computed, kept in pairs),
        "gain": statistics.fmean(run["accuracy"] for run in taught)
        - statistics.fmean(run["accuracy"] for run in alone),
        "kept / computed": statistics.median(kept["seconds"] / computed["seconds"] for computed, kept in pairs),
    }


def main() -> int:
    """Measure and write; returns 1 where something is less than it is to be."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["HCR_CACHE"] = str(Path(scratch) / "cache")
        figures = measure(Path(scratch))
    store = Store("distill")
    settings = {"flags": list(FLAGS), "teacher": TEACHER, "student": STUDENT, "few": FEW, "timed": TIMED}
    settings |= {"lesson": LESSON, "seeds": SEEDS}
    store.put("digits", settings, "measured", time.perf_counter() - began, {"figures": figures})
    store.write()
    print(json.dumps(figures, indent=1))
    good = figures["gain"] >= GAIN and figures["kept / computed"] <= SAVED and figures["losses are bit-equal"]
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
