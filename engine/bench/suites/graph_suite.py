"""Suite `graphs`: a whole training step as one CUDA graph, ours and the library's, beside the same steps launched.

The difference is what the host costs: small networks wait for it. Batches are the same at every replay, and the
optimizer's step counts on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

import archs
from engine.bench.instrument.bare_loop import DTYPES, ReadyBatches, training_step
from engine.bench.instrument.graphs import graphed
from engine.bench.instrument.measure import Steps, interleave, one_line
from engine.bench.instrument.options import Options
from engine.bench.instrument.peers import NotAvailable
from engine.bench.instrument.rows import Row
from engine.bench.instrument.sides import Side, build_network
from engine.config import OptimConfig
from engine.step.optim import build_optimizer
from engine.step.plan import Hardware, choose_precision

NETWORKS = ("mobilenetv2", "resnet50", "resnext50", "darknet53", "inceptionv3")
"""Of the `archs` suite, the one that waits for the host most first."""


def rows(options: Options) -> Iterator[Row]:
    """A row a network, compiled; not available without a GPU."""
    hardware, tiny = Hardware.detect(), options.dry_run
    for arch in options.archs or (("resnet18",) if tiny else NETWORKS):
        settings = {
            "arch": archs.lookup(arch).name,
            "batch_size": options.batch_size or (2 if tiny else 128),
            "image_size": max(options.image_size or (32 if tiny else 224), archs.lookup(arch).minimum_size),
            "precision": options.precision or choose_precision("auto", hardware),
            "backend": "aot_eager" if tiny else "inductor",
            "rounds": options.rounds or (2 if tiny else 7),
            "turn_seconds": 0.01 if tiny else 0.2,
        }
        yield Row(settings["arch"], settings, partial(measure, settings), seconds=10.0)


def measure(settings: dict[str, Any], deadline: float) -> dict[str, Any]:
    """Images/s of the four, in turns. One that cannot be recorded is told. Raises NotAvailable without a GPU."""
    device = torch.device(Hardware.detect().type)
    if device.type != "cuda":
        raise NotAvailable("CUDA graphs need a GPU")
    arch, batch = settings["arch"], settings["batch_size"]
    source = next(iter(archs.lookup(arch).sources), f"hcr:{arch}")
    shared = {"compile": settings["backend"], "auxiliary": False, "optimizer": "adam"}
    networks = {"HCR": Side(f"hcr:{arch}", settings["precision"], True, fused="auto", **shared)}
    networks["library"] = Side(source, settings["precision"], True, **shared)
    steps: dict[str, Callable[[], float]] = {}
    missing: dict[str, str] = {}
    for name, side in networks.items():
        try:
            step = one_step(side, batch, settings["image_size"], device)
            launched, turn = partial(_numbered, step), settings["turn_seconds"]
            steps[f"{name} launched"] = Steps(launched, batch, device, turn)
            steps[f"{name} in one graph"] = Steps(partial(_numbered, graphed(step, device)), batch, device, turn)
        except Exception as error:  # the boundary of a side: the other one is still worth measuring
            missing[name] = one_line(error)
    if not steps:
        raise RuntimeError("; ".join(f"{name}: {error}" for name, error in missing.items()))
    first = "HCR in one graph"
    ordered = {name: steps[name] for name in sorted(steps, key=lambda name: name != first)}
    return interleave(ordered, settings["rounds"], deadline=deadline).as_dict() | {"missing": missing}


def one_step(side: Side, batch_size: int, image_size: int, device: torch.device) -> Callable[[], None]:
    """A training step over one batch that does not change, its optimizer counting on the device."""
    torch.manual_seed(0)
    model = build_network(side, image_size).to(device).to(memory_format=torch.channels_last)
    optimizer = build_optimizer(model, OptimConfig(optimizer=side.optimizer))
    for group in optimizer.param_groups:
        group["capturable"] = True
    batches = ReadyBatches(1, batch_size, image_size, DTYPES[side.precision], device)
    step = training_step(model, optimizer, batches, DTYPES[side.precision])
    model.compile(dynamic=False, backend=side.compile)
    return partial(step, 0)


def _numbered(step: Callable[[], object], number: int) -> None:
    step()
