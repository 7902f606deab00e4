"""What a fused training step should take on a GPU that is not here: each launch compiled, counted and put to the model.

    python -m engine.bench.kernel_forecast --network mobilenetv2 --gpu h200      prints the step, launch by launch
    python -m engine.bench.kernel_forecast --write                               writes profiles/kernels-predicted.json
    python -m engine.bench.kernel_forecast --calibrate h200      fits the model to the layers that were measured there

Predicted, by `kernels.forecast`; nothing here was timed. The step is one CUDA graph of 128 images of 224 pixels in
bf16, without the optimizer; runs of small library calls between operators are one launch, as a compiler joins them.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import triton
from torch import nn

import archs
from archs.fused import set_fused
from engine.bench.instrument.kernel_layers import layers_of_all
from engine.bench.suites.kernel_rates import NETWORKS, layer_step
from engine.runs.provenance import ROOT
from kernels import forecast, machine_code
from kernels.device.launch import compiling_for
from kernels.forecast import Constants, Counted
from kernels.offline import Launch, kernel_name
from kernels.offline import machine_code as compiled
from kernels.recorded import LibraryCall, recorded

PROFILES = ROOT / "profiles"
TABLE = PROFILES / "kernels-predicted.json"
BATCH, SIDE, DTYPE = 128, 224, torch.bfloat16
ARCHITECTURE = 90
JOINED_BELOW = 1 << 20
"""Bytes of a library call between operators that a compiler joins with its neighbours: vectors, no maps."""
SHAPE = ("N", "H", "W", "C", "OUT", "K", "S", "M", "GROUPS", "ACT", "AFFINE", "STATISTICS", "RESIDUAL", "T")


def counted(launch: Launch, architecture: int = ARCHITECTURE) -> Counted:
    """The launch compiled for the architecture and its machine code counted."""
    usage, listing = compiled(launch, architecture)
    turns = machine_code.turns_of(kernel_name(launch), launch.values, launch.grid)
    work = machine_code.work(machine_code.read(listing), turns)
    return Counted(
        kernel_name(launch), math.prod(launch.grid), launch.options["num_warps"], usage["registers"],
        usage["shared_bytes"], launch.moved_bytes, work,
    )  # fmt: skip


def step_of(arch: str, batch: int = BATCH, side: int = SIDE, multiprocessors: int = 132) -> list[Launch | LibraryCall]:
    """Forward and backward of the fused network, all that it would launch, in order."""
    with torch.device("meta"):
        model = archs.build(arch, num_classes=1000).train()
        images = torch.empty(batch, 3, side, side, dtype=DTYPE).to(memory_format=torch.channels_last)
    set_fused(model, "on", "meta")
    for module in model.modules():
        if isinstance(module, nn.Linear):  # what autocast does, which knows no meta device
            module.to(DTYPE)
    with compiling_for(ARCHITECTURE, multiprocessors), recorded() as calls:
        logits = model(images)
        getattr(logits, "logits", logits).sum().backward()
    return calls


def shape_of(launch: Launch) -> str:
    """What a launch is of, in the kernel's own names: "C=144 H=56 W=56 K=3 S=1"."""
    return " ".join(f"{name}={launch.values[name]}" for name in SHAPE if name in launch.values)


def rows_of(calls: Iterable[Launch | LibraryCall], constants: Constants) -> list[dict[str, Any]]:
    """A row for each kernel and shape: how often, what was counted, predicted seconds and share of the copy rate."""
    found: dict[tuple[str, str, tuple[int, ...]], list[Launch]] = {}
    for call in calls:
        if isinstance(call, Launch):
            found.setdefault((kernel_name(call), shape_of(call), call.grid), []).append(call)
    rows = []
    for (kernel, shape, grid), launches in found.items():
        one = counted(launches[0])
        taken = forecast.seconds(one, constants)
        rows.append(
            {
                "kernel": kernel,
                "shape": shape,
                "times": len(launches),
                "grid": list(grid),
                "warps": one.warps,
                "registers": one.registers,
                "warps_at_once": forecast.blocks_at_once(one) * one.warps,
                "bytes": one.moved_bytes,
                "instructions": round(one.work.instructions * one.programs * one.warps),
                "work": [round(figure, 1) for figure in one.work],
                "shared_bytes": one.shared_bytes,
                "microseconds": round(taken * 1e6, 1),
                "share_of_copy": round(one.moved_bytes / constants.copy_rate / taken, 3),
            }
        )
    return rows


def library_calls(calls: Iterable[Launch | LibraryCall]) -> list[LibraryCall]:
    """Those of the step that are a launch: a run of small ones between operators is one."""
    kept: list[LibraryCall] = []
    joined = False
    for call in calls:
        small = isinstance(call, LibraryCall) and not call.inside and call.moved_bytes < JOINED_BELOW
        if isinstance(call, LibraryCall) and not (small and joined):
            kept.append(call)
        joined = small
    return kept


def network_row(arch: str, constants: Constants) -> dict[str, Any]:
    """The step's figures and the rows of its kernels."""
    calls = step_of(arch, multiprocessors=constants.multiprocessors)
    rows = rows_of(calls, constants)
    library = library_calls(calls)
    kernels = sum(row["times"] * row["microseconds"] for row in rows) / 1e6
    around = sum(forecast.library_seconds(call.moved_bytes, constants, call.operations) for call in library)
    traffic = json.loads((PROFILES / "activation-traffic.json").read_text(encoding="utf-8"))["networks"][arch]
    return {
        "launches": sum(row["times"] for row in rows),
        "library_calls": len(library),
        "library_calls_inside_operators": sum(call.inside for call in library),
        "predicted_milliseconds": round(1e3 * (kernels + around), 2),
        "of_it_library_milliseconds": round(1e3 * around, 2),
        "floor_milliseconds": round(1e3 * traffic["floor_bytes"] / constants.copy_rate, 2),
        "inductor_floor_milliseconds": round(1e3 * traffic["library"]["bytes"] / constants.copy_rate, 2),
        "kernels": rows,
    }


def measured_layers(gpu: str) -> list[forecast.Layer]:
    """The layers of profiles/<gpu>/kernels.json through the kernels, with their launches counted."""
    table = json.loads((PROFILES / gpu / "kernels.json").read_text(encoding="utf-8"))
    figures = [row["figures"] for row in table["rows"].values() if row["status"] == "measured"]
    measured = {row["layer"]: row["kernel_seconds"] for row in figures if row.get("kernel_seconds")}
    made: list[forecast.Layer] = []
    for layer in layers_of_all(NETWORKS, SIDE):
        if layer.key(DTYPE) not in measured or layer.key(DTYPE) in {one.name for one in made}:
            continue  # the report times a key once, whatever the activation
        x = torch.empty(BATCH, layer.channels, layer.height, layer.width, dtype=DTYPE, device="meta")
        path = "pointwise" if layer.size == 1 else "depthwise"
        run = layer_step(layer, x.to(memory_format=torch.channels_last), path)
        with compiling_for(ARCHITECTURE, forecast.constants_of(gpu, PROFILES).multiprocessors), recorded() as calls:
            run()
        launches = [counted(call) for call in calls if isinstance(call, Launch)]
        moved = [call.moved_bytes for call in calls if isinstance(call, LibraryCall)]
        made.append(forecast.Layer(layer.key(DTYPE), launches, moved, measured[layer.key(DTYPE)]))
    return made


def calibrate(gpu: str, layers: list[forecast.Layer]) -> dict[str, Any]:
    """The constants that fit the GPU's layers best, predicted ÷ measured of each of them, and their counted launches.

    For the commit that was measured: what is counted is the code that is here. The launches are kept so that the fit
    can be made again when the kernels have changed.
    """
    constants = forecast.fitted(layers, forecast.constants_of(gpu, PROFILES))
    ratios = {layer.name: round(layer.predicted(constants) / layer.measured, 3) for layer in layers}
    families = {}
    for family in forecast.FAMILIES:
        own = [layer for layer in layers if layer.name.startswith(family)]
        if own:
            found = [ratios[layer.name] for layer in own]
            families[family] = {
                "layers": len(own),
                "root_mean_square_of_log": round(forecast.deviation(own, constants), 3),
                "lowest_median_highest": [round(of(found), 3) for of in (min, statistics.median, max)],
            }
    return {
        "command": f"python -m engine.bench.kernel_forecast --calibrate {gpu}",
        "compiled_with": {"torch": torch.__version__, "triton": triton.__version__},
        "constants": constants._asdict(),
        "families": families,
        "predicted_over_measured": ratios,
        "layers": layers,
    }


def write_model(gpu: str, found: dict[str, Any]) -> None:
    """profiles/<gpu>/kernel-model.json, a layer a line."""
    layers = ",\n".join("  " + json.dumps(layer) for layer in found["layers"])
    head = json.dumps({key: value for key, value in found.items() if key != "layers"}, indent=1).removesuffix("\n}")
    target = PROFILES / gpu / "kernel-model.json"
    target.write_text(f'{head},\n "layers": [\n{layers}\n ]\n}}\n', encoding="utf-8")


def write_table(gpu: str, networks: Iterable[str], output: Path) -> None:
    """These networks' rows, in a table that keeps the others that it has; saved after each, a kernel a line."""
    constants = forecast.constants_of(gpu, PROFILES)
    kept = json.loads(output.read_text(encoding="utf-8"))["networks"] if output.is_file() else {}
    head = {
        "command": "python -m engine.bench.kernel_forecast --write",
        "what": "predicted by kernels.forecast from counted machine code; nothing in this file was timed",
        "versions": {"torch": torch.__version__, "triton": triton.__version__},
        "batch": BATCH,
        "image_size": SIDE,
        "dtype": str(DTYPE).removeprefix("torch."),
        "gpu": gpu,
        "constants": constants._asdict(),
    }
    for arch in networks:
        kept[arch] = network_row(arch, constants)
        rows = []
        for name in [name for name in NETWORKS if name in kept]:
            lines = ",\n".join("  " + json.dumps(one) for one in kept[name]["kernels"])
            figures = json.dumps({key: value for key, value in kept[name].items() if key != "kernels"})
            rows.append(f'"{name}": {figures[:-1]}, "kernels": [\n{lines}\n]}}')
        together = ",\n".join(rows)
        output.write_text(f'{json.dumps(head)[:-1]}, "networks": {{\n{together}\n}}}}\n', encoding="utf-8")


def text_of(arch: str, row: dict[str, Any]) -> str:
    """The row for a terminal, the longest kernels first."""
    lines = [
        f"{arch}: predicted {row['predicted_milliseconds']} ms a step; floor of bytes {row['floor_milliseconds']} ms, "
        f"inductor's {row['inductor_floor_milliseconds']} ms",
        f"{row['launches']} launches of kernels, {row['library_calls']} of the library "
        f"({row['of_it_library_milliseconds']} ms), {row['library_calls_inside_operators']} of them inside operators",
        "   ms  times  of copy  warps  regs  kernel",
    ]
    for one in sorted(row["kernels"], key=lambda one: -one["times"] * one["microseconds"]):
        lines.append(
            f"{one['times'] * one['microseconds'] / 1e3:5.2f}  {one['times']:5}  {one['share_of_copy']:7.2f}  "
            f"{one['warps_at_once']:5}  {one['registers']:4}  {one['kernel']} {one['shape']}"
        )
    return "\n".join(lines)


def main() -> None:
    """Print networks, write the table, or fit the model."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--network", nargs="+", choices=NETWORKS, help="print the predicted step of these")
    parser.add_argument("--gpu", default="h200", help="a folder of profiles/ with its rates; sm_90: assumed rates")
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.relative_to(ROOT)}")
    parser.add_argument("--output", type=Path, default=TABLE)
    parser.add_argument("--calibrate", metavar="GPU", help="fit to profiles/GPU/kernels.json, write kernel-model.json")
    options = parser.parse_args()
    if options.gpu != f"sm_{ARCHITECTURE}" and not (PROFILES / options.gpu / "machine.json").is_file():
        parser.error(f"--gpu {options.gpu}: neither sm_{ARCHITECTURE} nor a folder of profiles/ with a machine.json")
    if options.calibrate and not (PROFILES / options.calibrate / "kernels.json").is_file():
        parser.error(f"--calibrate {options.calibrate}: profiles/{options.calibrate} has no kernels.json")
    if not (options.network or options.write or options.calibrate):
        parser.error("give --network, --write or --calibrate")
    if options.calibrate:
        found = calibrate(options.calibrate, measured_layers(options.calibrate))
        write_model(options.calibrate, found)
        print(json.dumps(found["families"], indent=1))
    if options.write:
        write_table(options.gpu, options.network or NETWORKS, options.output)
    for arch in [] if options.write else options.network or []:
        print(text_of(arch, network_row(arch, forecast.constants_of(options.gpu, PROFILES))))


if __name__ == "__main__":
    main()
