"""What a run's memory came to, beside what was predicted, and what the next plans on such a GPU learn from it."""

from __future__ import annotations

import torch

from engine.config.byte_sizes import gib
from engine.plan.calibration import Measurement, add_measurement, correction_for
from engine.plan.memory.trace import Category
from engine.runs.runfolder import RunFolder
from engine.train.trainer import Trainer


def compare_memory(arch: str, trainer: Trainer, folder: RunFolder) -> None:
    """Say how the peak compares with the prediction, and keep that for the next plan on such a GPU."""
    plan = trainer.plan
    if not plan.predicted_allocated_bytes:
        return
    if plan.device != "cuda":
        print(f"memory: predicted {gib(plan.predicted_allocated_bytes)}, not measured on a CPU")
        return
    peaks = trainer.peaks
    measured = peaks.allocated or torch.cuda.max_memory_allocated()
    ratio = measured / plan.predicted_allocated_bytes
    print(f"memory: predicted {gib(plan.predicted_allocated_bytes)}, measured {gib(measured)} ({ratio:.3f} ×)")
    folder.append(
        "event",
        event="memory",
        step=trainer.progress.step,
        predicted_bytes=plan.predicted_allocated_bytes,
        measured_bytes=measured,
        predicted_reserved_bytes=plan.predicted_reserved_bytes,
        measured_reserved_bytes=peaks.reserved,
    )
    if not trainer.rescue.events and peaks.allocated:  # else of more than one plan, or of no whole step
        add_measurement(plan.device_name, _measurement(arch, trainer, ratio), measured)


def _measurement(arch: str, trainer: Trainer, ratio: float) -> Measurement:
    """What this run says of the next ones, without the corrections that its plan had."""
    plan, peaks = trainer.plan, trainer.peaks
    policy = plan.policy.describe()
    had = correction_for(plan.device_name).factors(arch, plan.precision, policy)
    assumed = sum(plan.predicted_bytes.get(each.label, 0) for each in (Category.CONTEXT, Category.LOADER))
    outside = peaks.outside()
    reserved = plan.predicted_reserved_bytes
    return Measurement(
        arch,
        plan.precision,
        policy,
        workspace=round(ratio * had.workspace, 4),
        fragmentation=round(peaks.reserved / reserved, 4) if reserved else 1.0,
        context=0 if outside is None else max(0, outside - assumed + had.context),
    )
