"""Do the remedies for classes of unlike size pay? The digits with a tail of 100:1, plain and with one flag more each.

`python -m engine.bench.long_tail` trains each of RUNS on every seed and writes profiles/<machine>/long-tail.json.
Class c keeps 100 · 100^(-c/9) of its training images: 100, 60, 36, … 2, 1; the test images stay as they are.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from engine.bench.instrument.record import Store
from engine.data.sources.open import open_source
from engine.runs.provenance import ROOT
from engine.runs.records import read_records

LARGEST, RATIO = 100, 100
SEEDS = (0, 1, 2)
RUNS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "sampler": ("--data.balance", "sampler"),
    "weights": ("--data.balance", "weights"),
    "effective": ("--data.balance", "effective"),
    "logit-adjust": ("--optim.logit-adjust", "1"),
}
FLAGS = ("--arch", "convnet_bn", "--config", "configs/digits.yaml", "--image-size", "32", "--epochs", "20")
FLAGS += ("--data.name", "folder", "--data.flip", "off", "--best", "balanced", "--log.monitor-interval", "0")
MOST_SECONDS = 180
"""Of a run, launch included; of its processors' time where others keep them busy."""
GAIN = 0.05
"""By how much one flag has to raise balanced accuracy."""


def long_tail(folder: Path) -> list[int]:
    """Link the digits' pictures into train/ and val/ of `folder`; returns the training images of each class."""
    source = open_source("digits")
    kept = [max(1, round(LARGEST * RATIO ** (-label / 9))) for label in range(10)]
    for name, split in (("train", source.train), ("val", source.val)):
        seen = [0] * 10
        for index, label in enumerate(split.labels.tolist()):
            if name == "train" and seen[label] >= kept[label]:
                continue
            seen[label] += 1
            path = Path(split.path(index))
            target = folder / name / source.classes[label] / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path)
    return kept


def measure(data: Path, run: Path, flags: tuple[str, ...], seed: int) -> dict[str, Any]:
    """Balanced accuracy, accuracy and macro F1 of the kept weights, and seconds from launch to end."""
    command = ["launch/train.py", *FLAGS, *flags, "--seed", str(seed)]
    began, used = time.perf_counter(), _children()
    subprocess.run(
        [sys.executable, *command, "--data.root", data, "--output", run], cwd=ROOT, check=True, capture_output=True
    )
    seconds, used = time.perf_counter() - began, _children() - used
    best = [row for row in read_records(run / "metrics.jsonl") if row["kind"] == "epoch" and row["best"]][-1]
    named = {name: best[name] for name in ("balanced_accuracy", "macro_f1", "epoch")}
    spent = {"seconds": round(seconds, 1), "processor_seconds": round(used, 1)}
    return {"command": f"python {' '.join(command)}", **spent, **named}


def _children() -> float:
    """Processor seconds of the processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> int:
    """Measure and write after each seed; returns 1 where no flag gains GAIN, or a run took more than MOST_SECONDS."""
    store = Store("long-tail")
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in RUNS}
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "digits"
        kept = long_tail(data)
        for seed in SEEDS:
            for name, flags in RUNS.items():
                found[name].append(measure(data, Path(scratch) / f"{name}{seed}", flags, seed))
                print(f"{name:<13} seed {seed}  balanced {found[name][-1]['balanced_accuracy']:.2%}", flush=True)
            for name, rows in found.items():
                figures = compared(rows, found["plain"])
                spent = sum(row["seconds"] for row in rows)
                store.put(name, {"train_images": kept}, "measured", spent, {"figures": figures})
    for name, rows in found.items():
        print(f"{name:<13} {compared(rows, found['plain'])['summary']}")
    best = max(compared(rows, found["plain"])["gain"] for rows in found.values())
    slowest = max(min(row["seconds"], row["processor_seconds"]) for rows in found.values() for row in rows)
    return int(best < GAIN or slowest > MOST_SECONDS)


def compared(rows: list[dict[str, Any]], plain: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the seeds, and what was gained over plain cross-entropy."""
    balanced, before = (statistics.median(row["balanced_accuracy"] for row in each) for each in (rows, plain))
    gain = balanced - before
    summary = f"balanced accuracy {balanced:.2%}, {100 * gain:+.1f} points (median of {len(rows)} seeds)"
    return {"balanced_accuracy": balanced, "gain": gain, "seeds": rows, "summary": summary}


if __name__ == "__main__":
    sys.exit(main())
