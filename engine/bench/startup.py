"""How long a person waits: from the launch to the first finished step, and for the help text."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from engine.bench.record import ROOT


def first_step_seconds(arch: str, image_size: int) -> float:
    """Seconds from `accelerate launch` to the first finished step of `arch` on the digits, without compile."""
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "run"
        command = [sys.executable, "-m", "accelerate.commands.launch", "launch/train.py", "--arch", arch]
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


def startup(arch: str, image_size: int, rounds: int) -> dict:
    """Both waits, `rounds` times each."""
    first = [round(first_step_seconds(arch, image_size), 2) for _ in range(rounds)]
    text = [round(help_seconds(), 3) for _ in range(rounds)]
    return {
        "first_step_seconds": {
            "arch": arch,
            "image_size": image_size,
            "median": statistics.median(first),
            "rounds": first,
        },
        "help_seconds": {"median": statistics.median(text), "rounds": text},
    }
