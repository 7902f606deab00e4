"""What torch.compile gains a step, and what it takes to compile: whether it pays depends on how long one trains."""

from __future__ import annotations

import copy

import torch

import archs
from engine.bench.bare_loop import CLASSES, ReadyBatches, bare_loop
from engine.bench.interleave import interleave
from engine.config import OptimConfig
from engine.planner import Hardware, choose_precision
from engine.wrap import AUTOCAST_DTYPES


def compile_gain(arch: str, batch_size: int, image_size: int, steps: int, rounds: int) -> dict:
    """Compiled ÷ eager training rate of `arch` in the precision a run here would choose, and the compile time."""
    hardware = Hardware.detect()
    device = torch.device(hardware.type)
    precision = choose_precision("auto", hardware)
    batches = ReadyBatches(steps, batch_size, image_size, AUTOCAST_DTYPES[precision], device)
    torch.manual_seed(0)
    eager = archs.build(arch, num_classes=CLASSES).to(device).to(memory_format=torch.channels_last).train()
    compiled = copy.deepcopy(eager)
    compiled.compile(dynamic=False)
    optim = OptimConfig(optimizer="sgd")
    contenders = {"compiled": bare_loop(compiled, batches, optim), "eager": bare_loop(eager, batches, optim)}
    first = len(batches) / contenders["compiled"]()
    result = interleave(contenders, rounds)
    later = len(batches) / result.median("compiled")
    saved = len(batches) / result.median("eager") - later
    facts = {"arch": arch, "precision": precision, "batch_size": batch_size, "image_size": image_size}
    return facts | {
        "compile_seconds": round(first - later, 1),
        "steps_until_it_pays": round((first - later) / saved * steps) if saved > 0 else None,
        **result.as_dict(),
    }
