"""Do the remedies for classes of unlike size pay? The digits with a tail of 100:1, plain and with one flag more each.

`python -m engine.bench.long_tail` trains each of RUNS on every seed and writes profiles/<machine>/long-tail.json.
Class c keeps 100 · 100^(-c/9) of its training images: 100, 60, 36, … 2, 1; the test images stay as they are.
"""

from __future__ import annotations

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
"""Of a run, launch included."""
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
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, *command, "--data.root", data, "--output", run], cwd=ROOT, check=True, capture_output=True
    )
    seconds = time.perf_counter() - began
    best = [row for row in read_records(run / "metrics.jsonl") if row["kind"] == "epoch" and row["best"]][-1]
    named = {name: best[name] for name in ("balanced_accuracy", "macro_f1", "epoch")}
    return {"command": f"python {' '.join(command)}", "seconds": round(seconds, 1), **named}


def main() -> int:
    """Measure and write; returns 1 where no flag gains GAIN, or a run took more than MOST_SECONDS."""
    store, gains, slowest = Store("long-tail"), {}, 0.0
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "digits"
        kept = long_tail(data)
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in RUNS}
        for seed in SEEDS:
            for name, flags in RUNS.items():
                found[name].append(measure(data, Path(scratch) / f"{name}{seed}", flags, seed))
                print(f"{name:<13} seed {seed}  balanced {found[name][-1]['balanced_accuracy']:.2%}", flush=True)
    plain = statistics.median(row["balanced_accuracy"] for row in found["plain"])
    for name, rows in found.items():
        balanced = statistics.median(row["balanced_accuracy"] for row in rows)
        gains[name] = balanced - plain
        slowest = max(slowest, *(row["seconds"] for row in rows))
        summary = f"balanced accuracy {balanced:.2%}, {100 * gains[name]:+.1f} points (median of {len(rows)} seeds)"
        figures = {"balanced_accuracy": balanced, "gain": gains[name], "seeds": rows, "summary": summary}
        store.put(name, {"train_images": kept}, "measured", sum(row["seconds"] for row in rows), {"figures": figures})
        print(f"{name:<13} {summary}")
    store.write()
    return int(max(gains.values()) < GAIN or slowest > MOST_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
