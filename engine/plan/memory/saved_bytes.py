"""What is kept for the backward pass, plain and with raw outputs only: `python -m engine.plan.memory.saved_bytes`.

Simulated at batch 128 under the images' usual size; a network whose blocks have no fused way is left out.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from functools import partial

import archs
from engine.plan.memory.simulate import Simulator, Step
from engine.runs.door import atomic_file
from engine.runs.provenance import ROOT
from engine.step.recompute import Policy

NETWORKS = ("resnet50", "resnext50", "darknet53", "inceptionv3", "mobilenetv2")
BATCH, IMAGE_SIZE, CLASSES = 128, 224, 1000
OUTPUT = ROOT / "profiles" / "plan" / "saved-bytes.json"


def row(arch: str, precision: str, image_size: int = IMAGE_SIZE) -> dict:
    """Saved bytes of one network, and by what raw outputs divide them."""
    simulator = Simulator(partial(archs.build, arch, CLASSES, image_size=image_size))
    plain, raw = (
        simulator.record(Step(image_size, CLASSES, precision, policy=policy)).saved(BATCH)
        for policy in (Policy(), Policy(rewrite="raw outputs"))
    )
    return {"arch": arch, "precision": precision, "plain": plain, "raw": raw, "plain_over_raw": round(plain / raw, 2)}


def main() -> None:
    """Simulate all of them and write profiles/plan/saved-bytes.json."""
    from engine.runs.provenance import commit, versions

    argparse.ArgumentParser(description=__doc__).parse_args()
    rows = [row(arch, precision) for arch in NETWORKS for precision in ("fp32", "bf16")]
    about = {"command": shlex.join(["python", "-m", "engine.plan.memory.saved_bytes", *sys.argv[1:]])}
    about |= {"commit": commit(), "versions": versions(), "batch_size": BATCH, "image_size": IMAGE_SIZE}
    with atomic_file(OUTPUT) as temporary:
        temporary.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n", encoding="utf-8")
    print("\n".join(f"{one['arch']} {one['precision']}: {one['plain_over_raw']}" for one in rows))


if __name__ == "__main__":
    main()
