"""Predicted against measured memory: the `memory` suite of a GPU report.

Each row trains some steps under the plan that the search chose for a budget, with torch's allocator held to it, and
compares `max_memory_allocated` with what was predicted; the best other candidates are timed beside it. Without a GPU
the same steps run on the CPU and no peak is measured: that tests the path, not the figures.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import Tensor

import archs
from engine.bench.instrument.measure import release_memory
from engine.config import DataConfig, ModelConfig, OptimConfig, PrecisionConfig, RunConfig
from engine.config.byte_sizes import GIB
from engine.plan.memory.card import device_of
from engine.plan.memory.loader import Feed
from engine.plan.run_plan import to_plan, workload_of
from engine.plan.search import Search
from engine.plan.workload import Candidate, Result
from engine.step.device_memory.allocator_settings import expandable
from engine.step.device_memory.out_of_memory import first_sentences, out_of_memory
from engine.step.device_memory.workspaces import VARIABLE
from engine.step.loss import loss_and_hits
from engine.step.micro_batches import micro_batches
from engine.step.optim import build_optimizer
from engine.step.plan import Hardware, Plan, make_plan
from engine.step.wrap import AUTOCAST_DTYPES, Launch, build_accelerator, wrap

NETWORKS = ("inceptionv3", "darknet53", "resnext50", "inceptionv3_fullres", "resnext29_2x64d")
"""Those that did not run at batch 128 on 8-16 GB, of both kinds."""
BUDGETS = (8, 12, 16)
WARM_UP = 3
"""Steps before the clock starts: cuDNN tries its algorithms in the first."""


@dataclass(frozen=True)
class MadeBatch:
    """One rank's share of a global batch, made up."""

    images: Tensor
    labels: Tensor
    weights: Tensor
    global_count: int
    count: int


@contextmanager
def allocator_held_to(budget: int) -> Iterator[None]:
    """Let torch's allocator on the GPU have no more than what `budget` leaves beside the context."""
    if not torch.cuda.is_available():
        yield
        return
    card = torch.cuda.get_device_properties(torch.cuda.current_device())
    outside = device_of(card.name, (card.major, card.minor)).outside
    torch.cuda.set_per_process_memory_fraction(min(1.0, (budget - outside) / card.total_memory))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def run_steps(config: RunConfig, plan: Plan, num_classes: int, steps: int) -> tuple[float, int]:
    """(images/s after the warm-up, allocator's peak in bytes or 0 on a CPU) of `steps` training steps under `plan`.

    Raises what `engine.step.device_memory.out_of_memory` knows where the plan does not fit after all.
    """
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()
    release_memory()  # accelerate leaves a circle of references: the network before would be counted in this one's peak
    cuda = plan.device == "cuda"
    device = torch.device(plan.device)
    torch.manual_seed(0)
    model = archs.build(config.model.arch, num_classes, image_size=config.data.image_size).to(device)
    optimizer = build_optimizer(model, config.optim)
    accelerator: Accelerator = build_accelerator(plan, Launch(0, 0, 1, None), config.optim)
    model, optimizer = wrap(model, optimizer, plan, accelerator)
    model.train()
    size, share = config.data.image_size, plan.global_batch_size
    images = torch.randn(share, 3, size, size, device=device, dtype=AUTOCAST_DTYPES[plan.precision])
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(num_classes, (share,), device=device)
    batch = MadeBatch(images, labels, torch.ones(share, device=device), share, share)
    del images
    parameters = list(model.parameters())
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    for step in range(WARM_UP + steps):
        if step == WARM_UP:
            if cuda:
                torch.cuda.synchronize()
            began = time.perf_counter()
        for part, targets, weights, *_ in micro_batches(batch, plan):
            with accelerator.accumulate(model):
                with plan.policy.around_forward(parameters):
                    output = model(part)
                loss, _ = loss_and_hits(output, targets, weights, 0.0)
                accelerator.backward(loss / share * plan.accumulation)
                del output
                optimizer.step()
                optimizer.zero_grad()
    if cuda:
        torch.cuda.synchronize()
    rate = steps * share / (time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated() if cuda else 0
    accelerator.free_memory()
    return rate, peak


def contenders(result: Result, most: int) -> list[Candidate]:
    """The cheapest other candidates that fit and compute the same function as the chosen one."""
    chosen = result.chosen
    fitting = [
        one
        for one in result.candidates
        if one is not chosen and one.peak <= result.budget and bool(one.changes) == bool(chosen and chosen.changes)
    ]
    return sorted(fitting, key=lambda one: one.seconds)[:most]


def memory_row(
    arch: str,
    budget: int,
    precision: str,
    hardware: Hardware,
    batch_size: int = 128,
    image_size: int = 224,
    steps: int = 20,
    others: int = 2,
    num_classes: int = 1000,
) -> dict:
    """One network under its plan for `budget` bytes, beside the `others` next best candidates."""
    config = RunConfig(
        model=ModelConfig(arch=arch, compile="off"),
        data=DataConfig(image_size=image_size),
        optim=OptimConfig(batch_size=batch_size),
        precision=PrecisionConfig(precision),  # type: ignore[arg-type]
    )
    build = partial(archs.build, arch, num_classes, image_size=image_size)
    # images are made on the device: there is no loader
    workload = workload_of(config, build, num_classes, cuda=hardware.type == "cuda", feed=Feed("none"))
    device = device_of(hardware.name, hardware.capability)
    workload = replace(workload, expandable=expandable(), device=device)
    result = Search(workload, [precision]).run(budget, every=True)
    row: dict = {
        "arch": arch,
        "batch_size": batch_size,
        "image_size": image_size,
        "precision": precision,
        "gpu_memory_gib": round(budget / GIB, 3),
    }
    if result.chosen is None:
        assert result.least is not None
        return row | {"fits": False, "least_bytes": result.least.peak}
    with torch.device("meta"):
        plain = make_plan(config, build(), hardware)
    measured = []
    with allocator_held_to(budget):
        for candidate in (result.chosen, *contenders(result, others)):
            plan = to_plan(plain, result, candidate)
            figures: dict = {
                "micro_batch_size": plan.micro_batch_size,
                "accumulation": plan.accumulation,
                "recompute": plan.recompute,
                "changes_function": bool(plan.changes),
                "predicted_bytes": plan.predicted_allocated_bytes,
                "predicted_cost": plan.relative_cost,
                "workspace_cap_bytes": plan.workspace_cap_bytes,
            }
            try:
                rate, peak = run_steps(config, plan, num_classes, steps)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                figures |= {"out_of_memory": first_sentences(error)}
            else:
                ratio = round(plan.predicted_allocated_bytes / peak, 4) if peak else None
                figures |= {"images_per_second": round(rate, 2), "measured_bytes": peak or None}
                figures |= {"predicted_over_measured": ratio, "CUDNN_CONV_WSCAP_DBG": os.environ.get(VARIABLE)}
            if hardware.type == "cuda":
                torch.cuda.empty_cache()
            measured.append(figures)
    rates = [figures.get("images_per_second", 0.0) for figures in measured]
    chosen_over_best = round(rates[0] / max(rates), 4) if max(rates) else None
    return row | {"fits": True, "chosen": measured[0], "others": measured[1:], "chosen_over_best": chosen_over_best}


def memory_rows(
    networks: Sequence[str] = NETWORKS,
    budgets: Sequence[float] = BUDGETS,
    precisions: Sequence[str] = ("bf16",),
    **options,
) -> list[dict]:
    """`memory_row` for every network, precision and budget in GiB; budgets above the GPU's memory are left out."""
    hardware = Hardware.detect()
    there = hardware.memory_bytes if hardware.type == "cuda" else float("inf")
    return [
        memory_row(arch, int(budget * GIB), precision, hardware, **options)
        for arch in networks
        for precision in precisions
        for budget in budgets
        if budget * GIB <= there
    ]


def summary(rows: list[dict]) -> dict:
    """What the rows are held to: share of predictions within 5 %, the lowest ratio, out-of-memories, speed."""
    ran = [row for row in rows if row["fits"]]
    ratios = [row["chosen"]["predicted_over_measured"] for row in ran if row["chosen"].get("predicted_over_measured")]
    return {
        "rows": len(rows),
        "without_a_plan": len(rows) - len(ran),
        "out_of_memory": sum("out_of_memory" in row["chosen"] for row in ran),
        "within_5_percent": round(sum(0.95 <= ratio <= 1.05 for ratio in ratios) / len(ratios), 4) if ratios else None,
        "lowest_ratio": min(ratios, default=None),
        "lowest_chosen_over_best": min(
            (row["chosen_over_best"] for row in ran if row["chosen_over_best"]), default=None
        ),
    }
