"""The simulator against real training steps on this CPU: `python -m engine.bench.memory_simulator`.

Both are counted by the same tracker, once on FakeTensors at a batch that no memory could hold and once on real tensors.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

import archs
from engine.plan.memory.simulate import Step, run_step, simulate
from engine.plan.memory.tracker import Tracker
from engine.plan.segments import best_segments
from engine.step.recompute import REWRITES, Policy, by_block

NETWORKS = (
    *("resnet18", "resnext50", "resnext29_2x64d", "inceptionv3", "inceptionv3_fullres", "darknet53"),
    *("densenet121", "googlenet", "mobilenetv2", "efficientnet_b0", "shufflenetv2_x1_0", "vit_s16"),
)
POLICIES = ("none", "block", "segments")


def builder(arch: str, image_size: int) -> Callable[[], archs.Classifier]:
    """Builds the network called `arch` for 10 classes."""
    return partial(archs.build, arch, 10, image_size=image_size)


def policy_of(kind: str, arch: str, step: Step) -> Policy:
    """The policy called `kind` for a network, its segments by the dynamic program."""
    if kind == "none":
        return Policy()
    if kind in REWRITES:
        return Policy(rewrite=kind)
    units = simulate(builder(arch, step.image_size), step).units
    return by_block(len(units)) if kind == "block" else best_segments(units)


def compare(arch: str, precision: str, kind: str, batch: int, image_size: int) -> dict:
    """Predicted and counted bytes of the second optimizer step: peak, and saved for the backward pass."""
    step = Step(image_size, 10, precision, cuda=False)
    step = replace(step, policy=policy_of(kind, arch, step))
    predicted = simulate(builder(arch, image_size), step)
    torch.manual_seed(0)
    model = builder(arch, image_size)().to(memory_format=torch.channels_last).train()
    counted = run_step(model, step, batch, Tracker())
    return {
        "arch": arch,
        "precision": precision,
        "recompute": step.policy.describe(),
        "batch_size": batch,
        "image_size": image_size,
        "predicted_peak": predicted.peak(batch),
        "counted_peak": counted.peak(batch),
        "predicted_over_counted": round(predicted.peak(batch) / counted.peak(batch), 6),
        "predicted_saved": predicted.saved(batch),
        "counted_saved": counted.saved(batch),
    }


def main() -> int:
    """Compare all networks, precisions and policies; exit code 1 where a prediction is off."""
    from engine.bench.instrument.record import record

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--image-size", type=int, default=64, help="least side in pixels")
    parser.add_argument("--output", type=Path, help="folder in place of profiles/")
    options = parser.parse_args()
    rows = []
    for arch in options.networks:
        size = max(options.image_size, archs.lookup(arch).minimum_size)
        for precision in ("fp32", "bf16"):
            for kind in POLICIES:
                rows.append(compare(arch, precision, kind, options.batch_size, size))
                print(rows[-1], flush=True)
    wrong = [row for row in rows if not good(row)]
    figures = {"rows": rows, "within_3_percent": len(rows) - len(wrong), "of": len(rows)}
    print(f"written to {record('memory-simulator', figures, options.output)}; {len(wrong)} of {len(rows)} are off")
    return 1 if wrong else 0


def good(row: dict) -> bool:
    """Peak within 3 %, saved bytes exact."""
    return abs(row["predicted_over_counted"] - 1) < 0.03 and row["predicted_saved"] == row["counted_saved"]


if __name__ == "__main__":
    sys.exit(main())
