"""Suite `compile`: what torch.compile gains a step, and what it takes to compile: it pays only in a long run."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

import archs
from engine.bench.instrument.measure import interleave
from engine.bench.instrument.options import Options
from engine.bench.instrument.rows import Row
from engine.bench.instrument.sides import Side, contender
from engine.step.plan import Hardware, choose_precision


def rows(options: Options) -> Iterator[Row]:
    """Compiled ÷ eager training of a network in the precision that a run here would choose."""
    hardware = Hardware.detect()
    cuda, tiny = hardware.type == "cuda", options.dry_run
    for arch in options.archs or ("resnet18" if tiny else "resnext50",):
        settings = {
            "arch": archs.lookup(arch).name,
            "batch_size": options.batch_size or (2 if tiny else 128 if cuda else 32),
            "image_size": options.image_size or (32 if tiny else 224 if cuda else 64),
            "precision": options.precision or choose_precision("auto", hardware),
            "backend": "aot_eager" if tiny else "inductor",
            "rounds": options.rounds or (2 if tiny else 9),
            "turn_seconds": 0.01 if tiny else 0.5,
        }
        yield Row(settings["arch"], settings, partial(measure, settings), seconds=90.0)


def measure(settings: dict[str, Any], deadline: float) -> dict[str, Any]:
    """Both rates in turns, the seconds of compiling, and after how many steps they are earned back."""
    device = torch.device(Hardware.detect().type)
    eager = Side(f"hcr:{settings['arch']}", settings["precision"], True)
    compiled = Side(eager.network, settings["precision"], True, compile=settings["backend"])
    batch = settings["batch_size"]
    steps = {
        name: contender(side, "train", batch, settings["image_size"], device, settings["turn_seconds"])
        for name, side in (("compiled", compiled), ("eager", eager))
    }
    comparison = interleave(dict(steps), settings["rounds"], deadline=deadline)
    if comparison.errors:
        raise RuntimeError("; ".join(f"{name}: {error}" for name, error in comparison.errors.items()))
    later = batch / comparison.median("compiled")
    compile_seconds = (steps["compiled"].first_step_seconds or 0.0) - later
    saved = batch / comparison.median("eager") - later
    return {
        "compile_seconds": round(compile_seconds, 1),
        "steps_until_it_pays": round(compile_seconds / saved) if saved > 0 else None,
        **comparison.as_dict(),
    }
