"""Suite `archs`: our networks beside their peers in one process, in turns, and beside the floor of this machine.

Peers of every row: the library's own model in a bare loop, eager; the same compiled; both channels-last under autocast
as ours is. And the loop that tutorials teach: fp32, contiguous images, eager, the optimizer as torch makes it. A
network that no library has stands in for its own peer: then the loops are compared, not the networks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch

import archs
from engine.bench.instrument.bare_loop import CLASSES, DTYPES
from engine.bench.instrument.counts import counted_saved, forward_flops
from engine.bench.instrument.energy import energy_counter
from engine.bench.instrument.floor import inference_work, rates_here, training_work
from engine.bench.instrument.measure import Steps, interleave
from engine.bench.instrument.options import Options
from engine.bench.instrument.peers import NotAvailable
from engine.bench.instrument.precompile import fill_cache
from engine.bench.instrument.record import machine
from engine.bench.instrument.rows import Row
from engine.bench.instrument.sides import Side, build_network, contender
from engine.step.plan import Hardware, choose_compile, choose_precision

FIRST = (
    *("resnext50", "inceptionv3", "darknet53", "resnext29_2x64d", "mobilenetv2"),
    *("efficientnet_b0", "resnet50", "xception", "shufflenet_g2", "vit_s16"),
)
"""Networks of the suite, those that carried the mark of high compute first."""
TUTORIAL = {"precision": "fp32", "channels_last": False, "fused_optimizer": False}
"""How the tutorials' loop differs from the others."""
CONTENDERS = ("HCR", "library eager", "library compiled", "tutorial loop")


AHEAD = "compile ahead"
"""The row that compiles the others' networks."""
COMPILE_SHARE = 0.45
"""Of the suite's budget that compiling ahead may take at most."""


def rows(options: Options) -> Iterator[Row]:
    """Training of all networks first, then inference, then recompute, then fp32."""
    hardware = Hardware.detect()
    device = torch.device(hardware.type)
    chosen = options.archs or tuple(name for name in FIRST if name in archs.names())
    if options.dry_run and not options.archs:
        chosen = ("resnet18", "shufflenet_g2")  # one that a library has, one that none has
    precision = options.precision or choose_precision("auto", hardware)
    compiled = options.compile if options.compile is not None else choose_compile("auto", hardware) or options.dry_run
    base = {
        "mode": "train",
        "precision": precision,
        "compile": compiled,
        "recompute": bool(options.recompute),
        "fused": options.fused or "auto",
        "optimizer": "adam",
        "rounds": options.rounds or (2 if options.dry_run else 9),
        "turn_seconds": 0.01 if options.dry_run else 0.25,
        "backend": "aot_eager" if options.dry_run else "inductor",
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
    }
    passes: list[dict[str, Any]] = [base, base | {"mode": "inference"}]
    if not options.recompute:
        passes.append(base | {"recompute": True})
    if precision != "fp32" and not options.precision:
        passes.append(base | {"precision": "fp32"})
    listed = [sized(settings, name, options, device) for settings in passes for name in chosen]
    if compiled and not options.warmed and (device.type == "cuda" or options.dry_run):
        settings = {"compiled": [key_of(one) for one in listed[: len(chosen)]], "cores": machine()["cores"]}
        most = COMPILE_SHARE * options.budget
        yield Row(AHEAD, settings, partial(fill_cache, listed[: len(chosen)], sides, most), 120.0, paced=False)
    for settings in listed:
        yield Row(key_of(settings), settings, partial(measure, settings, options), expected_seconds(settings, device))


def sized(settings: dict[str, Any], arch: str, options: Options, device: torch.device) -> dict[str, Any]:
    """The settings of one network: batch and image size as asked, else 128 at 224 px on a GPU and 16 at 64 on a CPU."""
    info = archs.lookup(arch)
    size = options.image_size or (224 if device.type == "cuda" else 64)
    batch = options.batch_size or (2 if options.dry_run else 128 if device.type == "cuda" else 16)
    return {"arch": info.name, "batch_size": batch, "image_size": max(size, info.minimum_size)} | settings


def key_of(settings: dict[str, Any]) -> str:
    """The row's name."""
    parts = [settings["arch"], settings["mode"], settings["precision"]]
    parts += [f"{settings['batch_size']}@{settings['image_size']}"]
    parts += ["compile"] if settings["compile"] else []
    parts += ["recompute"] if settings["recompute"] else []
    parts += [f"fused {settings['fused']}"] if settings["fused"] != "auto" else []
    return " ".join(parts)


def expected_seconds(settings: dict[str, Any], device: torch.device) -> float:
    """A guess that `Pace` corrects: loading two compiled networks, and the turns."""
    if device.type == "cuda":
        return (14.0 if settings["compile"] else 3.0) + 4 * 1.5 * settings["rounds"] * settings["turn_seconds"]
    return (60.0 if settings["compile"] else 2.0) + 6 * settings["rounds"] * max(1.0, settings["turn_seconds"])


def sides(settings: dict[str, Any]) -> dict[str, Side]:
    """The contenders of a row by name, in the order of CONTENDERS."""
    arch, source = settings["arch"], next(iter(archs.lookup(settings["arch"]).peers), None)
    shared = {
        "precision": settings["precision"],
        "channels_last": True,
        "optimizer": settings["optimizer"],
        # torchvision's auxiliary head ends in a 5x5 convolution over what is smaller than that in smaller images
        "auxiliary": source != "torchvision:inception_v3" or settings["image_size"] >= 299,
    }
    backend = settings["backend"] if settings["compile"] else ""
    theirs = source or f"hcr:{arch}"
    found = {
        "HCR": Side(f"hcr:{arch}", compile=backend, recompute=settings["recompute"], fused=settings["fused"], **shared),
        "library eager": Side(theirs, **shared),
        "library compiled": Side(theirs, compile=backend or settings["backend"], **shared),
        "tutorial loop": Side(theirs, **shared | TUTORIAL),
    }
    if not backend:
        del found["library compiled"]
    return found


def measure(settings: dict[str, Any], options: Options, deadline: float) -> dict[str, Any]:
    """All contenders in turns, with what each cost, what ours counts and its share of the floor."""
    device = torch.device(Hardware.detect().type)
    energy, note = energy_counter(device)
    size, batch, mode = settings["image_size"], settings["batch_size"], settings["mode"]
    steps: dict[str, Steps] = {}
    missing: dict[str, str] = {}
    for name, side in sides(settings).items():
        try:
            steps[name] = contender(side, mode, batch, size, device, settings["turn_seconds"], energy)
        except NotAvailable as error:
            missing[name] = str(error)
    comparison = interleave(dict(steps), settings["rounds"], deadline=deadline)
    if not comparison.rates:
        raise RuntimeError("; ".join(f"{name}: {error}" for name, error in comparison.errors.items()))
    counted = count(settings)
    work = (
        training_work(batch, counted["flops"], counted["saved_bytes"], counted["parameters"], settings["optimizer"])
        if mode == "train"
        else inference_work(batch, counted["flops"], counted["parameters"])
    )
    floor = work.floor(rates_here(options.output, options.dry_run), settings["precision"])
    contenders = {}
    for name, rates in comparison.rates.items():
        seconds = batch / comparison.median(name)
        contenders[name] = {
            "images_per_second": round(batch / seconds, 2),
            "step_seconds": seconds,
            "turns": len(rates),
        }
        contenders[name] |= steps[name].facts() | {"share_of_floor": round(floor["floor_seconds"] / seconds, 4)}
    notes = [note] if note else []
    notes += [f"{name}: {reason}" for name, reason in missing.items()]
    return {
        "sides": {name: side.stated() for name, side in sides(settings).items()},
        "contenders": contenders,
        "counted_per_image": counted,
        "floor": floor,
        "notes": notes,
        **comparison.as_dict(),
    }


def count(settings: dict[str, Any]) -> dict[str, int]:
    """Operations of a forward pass, bytes kept for the backward pass, both of one image; parameters. Of ours, plain."""
    side, size = replace(sides(settings)["HCR"], fused="off"), settings["image_size"]
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in build_network(side, size).parameters())
    saved = counted_saved(side, size, DTYPES[settings["precision"]])
    return {
        "flops": forward_flops(replace(side, recompute=False), size),
        "saved_bytes": saved.per_image,
        "saved_bytes_fixed": saved.fixed,
        "parameters": parameters,
        "classes": CLASSES,
    }


def table(rows: dict[str, dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """(heads, cells): a line a row, ours against each peer, and its share of the floor."""
    heads = ["row", "img/s", "ms/step", "GiB", "mJ/img", "of floor", *(f"÷ {name}" for name in CONTENDERS[1:]), "note"]
    cells = []
    for key, row in rows.items():
        if row["status"] != "measured" or "contenders" not in row["figures"]:
            what = row.get("error") or row.get("reason") or row["figures"].get("summary", "")
            cells.append([key, *[""] * (len(heads) - 2), what])
            continue
        figures = row["figures"]
        ours = figures["contenders"].get("HCR")
        ratios = [figures["ratio"].get(f"HCR / {name}") for name in CONTENDERS[1:]]
        told = "; ".join(f"{name}: {error}" for name, error in figures.get("errors", {}).items())
        cells.append([key, *_own(ours), *(f"{ratio['median']:.2f}" if ratio else "" for ratio in ratios), told])
    return heads, cells


def _own(ours: dict[str, Any] | None) -> list[str]:
    if ours is None:
        return ["failed", "", "", "", ""]
    peak, joules = ours["peak_bytes"], ours["joules_per_image"]
    return [
        f"{ours['images_per_second']:.0f}",
        f"{1e3 * ours['step_seconds']:.1f}",
        f"{peak / 2**30:.2f}" if peak else "",
        f"{1e3 * joules:.1f}" if joules else "",
        f"{100 * ours['share_of_floor']:.0f} %",
    ]
