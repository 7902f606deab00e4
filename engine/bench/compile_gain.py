"""What torch.compile gains a step, and what it takes to compile: whether it pays depends on how long one trains."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

import archs
from engine.bench.interleave import interleave
from engine.bench.trainer_tax import CLASSES, ReadyBatches, wait
from engine.config import OptimConfig
from engine.optim import build_optimizer
from engine.planner import Hardware, choose_precision
from engine.wrap import AUTOCAST_DTYPES


def compile_gain(arch: str, batch_size: int, image_size: int, steps: int, rounds: int) -> dict:
    """Compiled ÷ eager training rate of `arch` in the precision a run here would choose, and the compile time."""
    hardware = Hardware.detect()
    device = torch.device(hardware.type)
    precision = choose_precision("auto", hardware)
    dtype = AUTOCAST_DTYPES[precision]
    batches = ReadyBatches(steps, batch_size, image_size, dtype, device)
    torch.manual_seed(0)
    eager = archs.build(arch, num_classes=CLASSES).to(device).to(memory_format=torch.channels_last).train()
    compiled = copy.deepcopy(eager)
    compiled.compile(dynamic=False)

    def loop(model: torch.nn.Module) -> Callable[[], float]:
        optimizer = build_optimizer(model, OptimConfig(optimizer="sgd"))

        def run() -> float:
            wait(device)
            began = time.perf_counter()
            for batch in batches.epoch(0):
                with torch.autocast(device.type, dtype, enabled=precision != "fp32"):
                    loss = F.cross_entropy(model(batch.images), batch.labels)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            wait(device)
            return steps * batch_size / (time.perf_counter() - began)

        return run

    contenders = {"compiled": loop(compiled), "eager": loop(eager)}
    first = steps * batch_size / contenders["compiled"]()
    result = interleave(contenders, rounds)
    later = steps * batch_size / result.median("compiled")
    saved = steps * batch_size / result.median("eager") - later
    facts = {"arch": arch, "precision": precision, "batch_size": batch_size, "image_size": image_size}
    return facts | {
        "compile_seconds": round(first - later, 1),
        "steps_until_it_pays": round((first - later) / saved * steps) if saved > 0 else None,
        **result.as_dict(),
    }
