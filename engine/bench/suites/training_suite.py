"""Suite `training`: does every way to train run here at all? Ten steps of each, pass or fail, before anything is timed.

Each case is a process of its own, as many at once as there are cores for: compiling one network on one core takes
longer than all eager ones together, and a crash or a hang costs its case only.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch

from engine.bench.instrument.options import Options
from engine.bench.instrument.rows import NotReached, Row
from engine.bench.instrument.workers import Worker
from engine.bench.suites.trainer_tax import ready_trainer
from engine.config.byte_sizes import gib
from engine.plan.run_plan import halvings
from engine.recovery.rescue import Rescue
from engine.step.plan import Hardware, use_cuda
from engine.step.recompute import by_block
from engine.step.sync_norm import SyncNorm, synchronise_norms
from engine.step.wrap import bare_module
from engine.train.trainer import Trainer
from kernels.over_ranks import group_name

NETWORKS = ("resnet50", "mobilenetv2", "inceptionv3", "efficientnet_b0", "vit_s16")
STEPS = 10
ENDS = 5.0
"""Seconds that are kept for what comes after the cases: reading their last words."""


ENOUGH = 20.0
"""Seconds without an end that say something against a case; one that had fewer was not reached."""


@dataclass(frozen=True)
class Case:
    """One way to train."""

    arch: str
    precision: str
    how: str
    """One of HOW."""
    batch_size: int
    image_size: int

    @property
    def key(self) -> str:
        """The row's name."""
        return f"{self.arch} {self.precision} {self.how}"


def eager(trainer: Trainer) -> None:
    """As it is."""


def recomputing(trainer: Trainer) -> None:
    """Every block's forward pass again in the backward pass."""
    units = len(list(trainer.model.blocks()))
    trainer.step.switch(replace(trainer.plan, policy=by_block(units), recompute="block"))


def offloading(trainer: Trainer) -> None:
    """What is kept goes to the host and back."""
    trainer.step.switch(replace(trainer.plan, policy=replace(trainer.plan.policy, offload=True)))


def synchronising(trainer: Trainer) -> None:
    """BatchNorm through the exchange over ranks, which on one GPU has one rank."""
    backend = "nccl" if trainer.accelerator.device.type == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)
    SyncNorm.exchange_group = lambda norm: norm.group  # type: ignore[method-assign]  # alone it would exchange nothing
    if not synchronise_norms(bare_module(trainer.model), group_name()):
        raise RuntimeError(f"{trainer.config.model.arch} has no BatchNorm to synchronise")


def short_of_memory(trainer: Trainer) -> None:
    """The allocator is held to nine tenths of what a step takes: the first step runs out, and is repeated in halves.

    On a CPU, where memory is not counted, the step runs as it is.
    """
    trainer.rescue = Rescue(trainer.step, trainer.checkpointer, trainer.folder, halvings(trainer.plan))
    if trainer.accelerator.device.type != "cuda":
        return
    batch = next(trainer.train_loader.epoch(0))
    trainer.rescue.take(batch)
    torch.cuda.empty_cache()
    before, peak = torch.cuda.memory_reserved(), torch.cuda.max_memory_allocated()
    total = torch.cuda.get_device_properties(trainer.accelerator.device).total_memory
    torch.cuda.set_per_process_memory_fraction((before + 0.9 * (peak - before)) / total)


HOW: dict[str, Callable[[Trainer], None]] = {
    "eager": eager,
    "compiled": eager,
    "recompute": recomputing,
    "offload": offloading,
    "sync-bn": synchronising,
    "rescue": short_of_memory,
}


def cases(options: Options) -> list[Case]:
    """Every network in each precision eager, then what is asked of one network, then compiled: cheap ones first."""
    cuda, tiny = use_cuda(), options.dry_run
    networks = options.archs or (("resnet18",) if tiny else NETWORKS)
    precisions = (options.precision,) if options.precision else ("fp32", "bf16", "fp16") if cuda else ("fp32", "bf16")
    sizes = options.batch_size or (4 if tiny else 32), options.image_size or (32 if tiny else 96)
    made = [Case(arch, precision, "eager", *sizes) for arch in networks for precision in precisions]
    made += [Case(networks[0], precisions[-1], how, *sizes) for how in ("recompute", "offload", "sync-bn", "rescue")]
    if cuda and options.compile is not False:
        made += [Case(arch, precision, "compiled", *sizes) for precision in precisions[1:] for arch in networks]
    return made


def rows(options: Options) -> Iterator[Row]:
    """All cases at once, several at a time; then a row a case with what became of it."""
    listed, found = cases(options), dict[str, dict[str, Any]]()
    settings = {"cases": [case.key for case in listed], "steps": STEPS}
    yield Row("all at once", settings, partial(run_all, listed, found), seconds=30.0, paced=False)
    for case in listed:
        yield Row(case.key, asdict(case) | {"steps": STEPS}, partial(figures_of, case, found), seconds=0.0, paced=False)


def run_all(listed: list[Case], found: dict[str, dict[str, Any]], deadline: float) -> dict[str, Any]:
    """Run the cases in processes until `deadline`; what each printed, or its last words, is put into `found`."""
    at_once = max(1, (os.cpu_count() or 1) // 2)
    waiting, running = list(listed), dict[Worker, tuple[Case, float]]()
    while (waiting or running) and time.monotonic() < deadline - ENDS:
        while waiting and len(running) < at_once:
            case = waiting.pop(0)
            running[Worker("engine.bench.suites.training_suite", asdict(case))] = case, time.monotonic()
        for worker in [one for one in running if one.ended()]:
            found[running.pop(worker)[0].key] = worker.result()
        time.sleep(0.05)
    for worker, (case, began) in running.items():
        worker.end()
        if (had := time.monotonic() - began) >= ENOUGH:
            found[case.key] = {"error": f"had not ended after {had:.0f} s with {at_once} at a time"}
    passed = sum("error" not in result for result in found.values())
    missed = len(listed) - len(found)
    return {"at_once": at_once, "summary": f"{passed} of {len(listed)} ways to train ran, {missed} not reached"}


def figures_of(case: Case, found: dict[str, dict[str, Any]], deadline: float) -> dict[str, Any]:
    """What `run_all` found of one case. Raises RuntimeError where it failed, NotReached where time was short."""
    if case.key not in found:  # the suite goes on: what was run at once is in the file already
        run_all([case], found, deadline)
    if (result := found.get(case.key)) is None:
        raise NotReached
    if "error" in result:
        raise RuntimeError(result["error"])
    return result


def train(case: Case) -> dict[str, Any]:
    """Ten steps of a trainer in that way. Raises RuntimeError for a loss that is not finite or a rescue without one."""
    compiled = "on" if case.how == "compiled" else "off"
    began = time.perf_counter()
    sizes = case.batch_size, case.image_size
    with ready_trainer(case.arch, *sizes, case.precision, STEPS, compiled) as (trainer, _, _):  # type: ignore[arg-type]
        HOW[case.how](trainer)
        trainer.rescue.allocate_state()  # as `Trainer.fit` does before its first step
        trainer._train_epoch()
        loss, step = trainer.progress.loss_sum / trainer.progress.images, trainer.progress.step
        plan, rescues = trainer.plan, len(trainer.rescue.events)
    if not math.isfinite(loss) or step != STEPS:
        raise RuntimeError(f"mean loss {loss} after {step} steps")
    if case.how == "rescue" and use_cuda() and not rescues:
        raise RuntimeError("memory was held short, and no step was repeated")
    peak = torch.cuda.max_memory_allocated() if use_cuda() else 0
    told = f", {rescues} rescue to {plan.micro_batch_size} × {plan.accumulation}" if rescues else ""
    return {
        "loss": round(loss, 4),
        "seconds": round(time.perf_counter() - began, 2),
        "peak_bytes": peak,
        "device": Hardware.detect().name,
        "summary": f"ran, loss {loss:.3f}{', ' + gib(peak) if peak else ''}{told}",
    }


def main() -> int:
    """Train the case that the first argument describes as JSON; prints what became of it."""
    given = Case(**json.loads(sys.argv[1]))
    print(json.dumps(train(given)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
