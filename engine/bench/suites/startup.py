"""Suite `startup`: how long a person waits from the launch to the first finished step, and for the help text."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import archs
from engine.bench.instrument.measure import estimate
from engine.bench.instrument.options import Options
from engine.bench.instrument.peers import NotAvailable
from engine.bench.instrument.rows import Row
from engine.runs.provenance import ROOT

NEEDED = ("tyro", "pydantic", "accelerate", "sklearn")
"""What `launch/train.py` on the digits stands on."""
LAUNCHERS: dict[str, tuple[str, ...]] = {
    "python": (),
    "accelerate launch": ("-m", "accelerate.commands.launch"),
    "torchrun": ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1"),
}
"""What comes between the interpreter and the script, by the launcher's name."""


def rows(options: Options) -> Iterator[Row]:
    """The first step of one network at 64 px, and the help text."""
    rounds = options.rounds or (1 if options.dry_run else 5)
    for arch in options.archs or ("resnet18" if options.dry_run else "resnext50",):
        settings = {"arch": archs.lookup(arch).name, "image_size": options.image_size or 64, "rounds": rounds}
        wait = partial(first_step_seconds, settings["arch"], settings["image_size"])
        yield Row(f"first step {settings['arch']}", settings, partial(measure, wait, rounds), seconds=8.0 * rounds)
    yield Row("help", {"rounds": rounds}, partial(measure, help_seconds, rounds), seconds=0.5 * rounds)


def measure(wait: Callable[[], float], rounds: int, deadline: float) -> dict[str, Any]:
    """`wait` as often as `rounds` says. Raises NotAvailable where the launch scripts lack a package."""
    for package in NEEDED:
        if importlib.util.find_spec(package) is None:
            raise NotAvailable(f"{package} is not installed")
    seconds = [wait() for _ in range(rounds)]
    found = estimate(seconds).as_dict()
    return {"seconds": found, "rounds": [round(one, 3) for one in seconds], "summary": f"{found['median']:.2f} s"}


def first_step_seconds(arch: str, image_size: int, launcher: Sequence[str] = LAUNCHERS["accelerate launch"]) -> float:
    """Seconds from the launcher's start to the first finished step of `arch` on the digits, without compile."""
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "run"
        command = [sys.executable, *launcher, "launch/train.py", "--arch", arch]
        command += ["--image-size", str(image_size), "--no-compile", "--epochs", "1", "--data.limit", "128"]
        command += ["--output", str(output), "--log.no-plots"]
        began = time.time()
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        rows = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
        return next(row["time"] for row in rows if row["kind"] == "step") - began


def help_seconds() -> float:
    """Seconds that `launch/train.py --help` takes."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "launch/train.py", "--help"], cwd=ROOT, check=True, capture_output=True)
    return time.perf_counter() - began
