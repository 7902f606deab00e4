"""The `kernels` suite of the GPU report: each layer of five networks through our kernel and through the library.

`kernels.dispatch` reads the rows as profiles/<gpu>/kernels.json: each row's figures. Every layer is timed as a training
step runs it, convolution, BatchNorm and activation, forward and backward, both contenders in turn in one process.
"""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import archs
import kernels
from archs.fused import Fusable
from archs.layers import SqueezeExcite
from engine.bench.instrument.graphs import graphed
from engine.bench.instrument.kernel_layers import Layer, layers_of_all
from engine.bench.instrument.measure import fair_settings, one_line
from engine.bench.instrument.options import Options
from engine.bench.instrument.peers import NotAvailable
from engine.bench.instrument.record import PROFILES, machine
from engine.bench.instrument.rows import Row
from engine.bench.suites import kernel_checks
from engine.bench.suites.layer_checks import CHECKED, CHECKED_BATCH, layer_check, spread
from kernels.conv import call
from kernels.dispatch import measured, worth_it

NETWORKS = ("mobilenetv1", "mobilenetv2", "xception", "efficientnet_b0", "shufflenet_g3")
STEPS = ("mobilenetv1", "mobilenetv2", "efficientnet_b0", "xception", "shufflenet_g3")


logger = logging.getLogger("hcr")


def seconds(run: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Seconds a call, over `repeats` calls; on a GPU by its own clock."""
    if device.type != "cuda":
        began = time.perf_counter()
        for _ in range(repeats):
            run()
        return (time.perf_counter() - began) / repeats
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / repeats


def taking_turns(
    contenders: dict[str, Callable[[], Any]], device: torch.device, rounds: int, repeats: int
) -> dict[str, float]:
    """Median seconds a call of each, over `rounds` rounds after one that is not counted; the order turns each round."""
    names = list(contenders)
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds + 1):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            taken = seconds(contenders[name], device, repeats)
            if turn:
                times[name].append(taken)
    return {name: statistics.median(taken) for name, taken in times.items()}


def copy_bandwidth(device: torch.device, megabytes: int, repeats: int) -> float:
    """Bytes/s read and written by a copy of `megabytes` on the device: the rate that layers are held to."""
    source = torch.empty(megabytes << 20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    times = [seconds(partial(target.copy_, source), device, repeats) for _ in range(5)]
    return 2 * source.numel() / statistics.median(times)


def layer_step(layer: Layer, x: Tensor, path: str) -> Callable[[], None]:
    """Forward and backward of prologue, convolution and statistics, all gradients taken."""
    shape = (layer.outputs, layer.channels // layer.groups, layer.size, layer.size)
    weight = torch.randn(shape, device=x.device).requires_grad_()
    vectors = [torch.rand(layer.channels, device=x.device).requires_grad_() for _ in range(3)]
    images = x.detach().requires_grad_()
    prologue = kernels.Prologue(*vectors, layer.act)
    pad = layer.size // 2
    sides = [(layer.squeezed, layer.channels), (layer.squeezed,), (layer.channels, layer.squeezed), (layer.channels,)]
    gates = [torch.randn(side, device=x.device).requires_grad_() for side in sides if layer.squeezed]
    inputs = [images, weight, *vectors, *gates]

    def run() -> None:
        if layer.squeezed:
            result = kernels.excited_pointwise_conv2d(
                images, weight, *gates, prologue=prologue, act=layer.act, statistics=True
            )
        else:
            result = call(images, weight, layer.stride, pad, 1, layer.groups, 1, prologue, True, path)
        assert isinstance(result, tuple)
        y, found = result
        torch.autograd.grad([y, found.mean, found.m2], inputs, [y, found.mean, found.m2])

    return run


def library_step(layer: Layer, x: Tensor) -> Callable[[], None]:
    """The same work by the library: BatchNorm, activation (excitation), convolution, under torch.compile on a GPU."""
    norm = nn.BatchNorm2d(layer.channels)
    acts = {"relu": nn.ReLU, "relu6": nn.ReLU6, "silu": nn.SiLU, "leaky_relu": nn.LeakyReLU, "hardswish": nn.Hardswish}
    conv = nn.Conv2d(
        layer.channels, layer.outputs, layer.size, layer.stride, layer.size // 2, groups=layer.groups, bias=False
    )
    excite = [SqueezeExcite(layer.channels, layer.squeezed, acts[layer.act])] if layer.squeezed else []
    model = nn.Sequential(norm, acts[layer.act](), *excite, conv).to(x.device).to(memory_format=torch.channels_last)
    if x.is_cuda:
        model.compile(dynamic=False)
    images = x.detach().requires_grad_()
    inputs = [images, *model.parameters()]

    def run() -> None:
        with torch.autocast(x.device.type, dtype=x.dtype, enabled=x.dtype != torch.float32):
            y = model(images)
        torch.autograd.grad(y, inputs, torch.ones_like(y))

    return run


def layer_row(layer: Layer, batch: int, dtype: torch.dtype, device: torch.device, rounds: int, repeats: int) -> dict:
    """Seconds of both, taking turns, and the kernel's bytes/s.

    Bytes are those of X + Y elements forward and 2X + 2Y backward; with an excitation of `kernels.excited_pointwise`'s
    2X + Y and 6X + 4Y.
    """
    shape = (batch, layer.channels, layer.height, layer.width)
    x = torch.randn(shape, device=device).to(dtype).contiguous(memory_format=torch.channels_last)
    path = "pointwise" if layer.size == 1 else "depthwise"
    contenders = {"kernel": layer_step(layer, x, path), "library": library_step(layer, x)}
    if not layer.squeezed:  # what auto takes in the kernel's place: the same operator, its passes fused beside cuDNN
        contenders["aten"] = layer_step(layer, x, "aten")
    recorded = as_graphs(contenders, device)
    times = taking_turns(recorded or contenders, device, rounds, repeats)
    kernel, library = times["kernel"], times["library"]
    side = math.prod((s + 2 * (layer.size // 2) - layer.size) // layer.stride + 1 for s in (layer.height, layer.width))
    outputs = batch * layer.outputs * side
    moved = dtype.itemsize * (8 * x.numel() + 5 * outputs if layer.squeezed else 3 * (x.numel() + outputs))
    return {
        "layer": layer.key(dtype),
        "kernel_seconds": kernel,
        "library_seconds": library,
        "library_over_kernel": library / kernel,
        "aten_seconds": times.get("aten"),
        "bytes": moved,
        "bytes_per_second": moved / kernel,
        "in_graphs": bool(recorded),
    }


def as_graphs(contenders: dict[str, Callable[[], Any]], device: torch.device) -> dict[str, Callable[[], Any]]:
    """Each as one CUDA graph, so that no host's time is in a layer's; empty where one of them cannot be recorded."""
    try:
        return {name: graphed(run, device) for name, run in contenders.items()}
    except NotAvailable:
        return {}
    except RuntimeError as error:  # what CUDA raises of a step that cannot be recorded; said in the row as launched
        logger.info("timed as launched: %s", one_line(error))
        return {}


def step_row(
    arch: str,
    batch: int,
    size: int,
    dtype: torch.dtype,
    device: torch.device,
    rounds: int,
    taken: frozenset[str] = frozenset(),
) -> dict:
    """Seconds and peak bytes of a whole training step, all under torch.compile on a GPU, each as one CUDA graph.

    Every layer through its kernel (fused), those in `taken` (auto), none (inductor). auto is what a run would take with
    the table that `taken` is of: by `inductor_over_auto` it decides about the network.
    """
    steps: dict[str, Callable[[], None]] = {}
    peaks: dict[str, int | None] = {}
    images = torch.randn(batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(batch, dtype=torch.long, device=device)
    for name, fused in (("fused", "on"), ("auto", "auto"), ("inductor", "off")):
        model = archs.build(arch, num_classes=1000).to(device).to(memory_format=torch.channels_last).train()
        for module in model.modules():
            if isinstance(module, Fusable):
                module.switch(fused, taken)  # type: ignore[arg-type]
        if device.type == "cuda":
            model.compile(dynamic=False)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)

        def run(model: nn.Module = model, optimizer: torch.optim.Optimizer = optimizer) -> None:
            with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
                logits = model(images)
            nn.functional.cross_entropy(getattr(logits, "logits", logits).float(), labels).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        steps[name] = run
        run()
        peaks[name] = None
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            run()
            peaks[name] = torch.cuda.max_memory_allocated()
    recorded = as_graphs(steps, device)
    times = taking_turns(recorded or steps, device, rounds, 3)
    return {
        "arch": arch,
        "seconds": times,
        "inductor_over_fused": times["inductor"] / times["fused"],
        "inductor_over_auto": times["inductor"] / times["auto"],
        "layers_taken": len(taken),
        "in_graphs": bool(recorded),
        "peaks": peaks,
    }


def rows(options: Options) -> list[Row]:
    """The suite for `launch/bench.py`: whole steps, checks, a row a layer shape; tiny and on the CPU in a dry run."""
    cuda = torch.cuda.is_available() and not options.dry_run
    device = torch.device("cuda" if cuda else "cpu")
    batch = options.batch_size or (128 if cuda else 2)
    size = options.image_size or (224 if cuda else 32)
    dtype = {"fp32": torch.float32, "fp16": torch.float16}.get(options.precision, torch.bfloat16)
    rounds = options.rounds or (5 if cuda else 1)
    networks = options.archs or (NETWORKS if cuda else ("mobilenetv1_025",))
    settings = {"batch": batch, "image_size": size, "dtype": str(dtype), "rounds": rounds, "device": device.type}

    def step(arch: str, deadline: float) -> dict[str, Any]:
        table = measured(machine()["key"], options.output or PROFILES)  # of the rows above, as they are written
        return step_row(arch, batch, size, dtype, device, rounds, worth_it(table))

    def layer_figures(layer: Layer, deadline: float) -> dict[str, Any]:
        bandwidth = copy_bandwidth(device, 1024 if cuda else 1, 10)
        row = layer_row(layer, batch, dtype, device, rounds, 10 if cuda else 1)
        return row | {"share_of_copy": row["bytes_per_second"] / bandwidth}

    layers = layers_of_all(networks, size)
    made = []
    for layer in spread(layers, CHECKED if cuda else 2):
        measure = partial(layer_check, layer, min(batch, CHECKED_BATCH), dtype, device)
        made.append(Row(f"right {layer.key(dtype)}", settings, measure, 1.0))
    checks = kernel_checks.rows(options, device)
    made += checks[:1]
    for layer in layers[: None if cuda else 2]:
        made.append(Row(layer.key(dtype), settings, partial(layer_figures, layer), 3.0))
    made += [Row(f"step {arch}", settings | {"arch": arch}, partial(step, arch), 60.0) for arch in networks]
    return made + checks[1:]


def kernel_rates(
    device: torch.device,
    batch: int = 128,
    image_size: int = 224,
    dtype: torch.dtype = torch.bfloat16,
    rounds: int = 5,
    repeats: int = 10,
    networks: Iterable[str] = NETWORKS,
    steps: Iterable[str] = STEPS,
    most_layers: int | None = None,
) -> dict[str, Any]:
    """The suite's figures: copy bandwidth, a row a layer shape, a row a network's step. On a CPU a dry run."""
    bandwidth = copy_bandwidth(device, 1024 if device.type == "cuda" else 1, repeats)
    rows = []
    for layer in layers_of_all(networks, image_size)[:most_layers]:
        with fair_settings():
            row = layer_row(layer, batch, dtype, device, rounds, repeats)
        rows.append(row | {"share_of_copy": row["bytes_per_second"] / bandwidth})
    whole = []
    for arch in steps:
        with fair_settings():
            whole.append(step_row(arch, batch, image_size, dtype, device, rounds))
    return {
        "batch": batch,
        "image_size": image_size,
        "copy_bytes_per_second": bandwidth,
        "layers": rows,
        "steps": whole,
    }
