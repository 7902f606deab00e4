"""Suite `zoo`: our network beside the same one of torchvision or timm, plain path, no compile, everything else equal.

Target: training step ours ÷ theirs >= 0.98, and no more bytes kept for the backward pass than theirs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

import archs
from engine.bench.instrument.bare_loop import DTYPES, loss_of
from engine.bench.instrument.counts import COUNTED, counted_saved
from engine.bench.instrument.measure import interleave, processor_ratio
from engine.bench.instrument.options import Options
from engine.bench.instrument.peers import NotAvailable
from engine.bench.instrument.rows import Row
from engine.bench.instrument.sides import Side, build_network, contender
from engine.step.plan import Hardware

SIZES = (64, 75, 96, 128, 160, 192, 224, 299)
"""Sides in pixels that are tried in turn: the first at which both networks train."""
LEAST_RATIO = 0.98
PIXELS = 16 * 64 * 64
"""Of a batch: 16 images at 64 px, fewer of larger ones."""
FEWEST = 4
"""Images of a batch."""
ROUNDS = 61
TOLERANCE = 0.01
"""Rounds end when the interval of the ratio reaches no further than this to either side."""
ROW_SECONDS = 25.0


def rows(options: Options) -> Iterator[Row]:
    """A row a network that has a reference, the cheapest first; those without have nobody to be compared with."""
    chosen = options.archs or (("resnet18",) if options.dry_run else archs.names())
    for arch in sorted(chosen, key=lambda name: archs.lookup(name).multiply_adds):
        for source in archs.lookup(arch).peers[:1]:
            settings = {
                "arch": archs.lookup(arch).name,
                "reference": source,
                "batch_size": options.batch_size or (2 if options.dry_run else None),
                "precision": options.precision or "fp32",
                "threads": torch.get_num_threads(),
                "rounds": options.rounds or (2 if options.dry_run else ROUNDS),
                "turn_seconds": 0.01 if options.dry_run else 0.15,
            }
            yield Row(settings["arch"], settings, partial(measure, settings, options.image_size), seconds=20.0)


def measure(settings: dict[str, Any], image_size: int, deadline: float) -> dict[str, Any]:
    """Both sides' rates in turns, and the bytes that each keeps."""
    device = torch.device(Hardware.detect().type)
    shared = {"precision": settings["precision"], "channels_last": True}
    ours = Side(f"hcr:{settings['arch']}", **shared)
    theirs = Side(settings["reference"], **shared)
    size = image_size or smallest_size(ours, theirs)
    batch = settings["batch_size"] or max(FEWEST, PIXELS // size**2)
    deadline = min(deadline, time.monotonic() + ROW_SECONDS)
    autocast = DTYPES[settings["precision"]]
    kept = {}
    for name, side in (("ours", ours), ("theirs", theirs)):
        kept[name] = counted_saved(side, size, autocast)
    steps = {
        name: contender(side, "train", batch, size, device, settings["turn_seconds"])
        for name, side in (("ours", ours), ("theirs", theirs))
    }
    comparison = interleave(dict(steps), settings["rounds"], deadline=deadline, tolerance=TOLERANCE)
    if comparison.errors:
        raise RuntimeError("; ".join(f"{name}: {error}" for name, error in comparison.errors.items()))
    processor = processor_ratio(steps["ours"], steps["theirs"])
    return {
        "image_size": size,
        "batch_size": batch,
        "sides": {"ours": ours.stated(), "theirs": theirs.stated()},
        "ratio": comparison.ratio("theirs").as_dict(),
        "processor_time_ratio": processor.as_dict() if processor else None,
        "saved_bytes": {name: saved._asdict() for name, saved in kept.items()},
        "saved_ratio": round(kept["ours"].at(batch) / kept["theirs"].at(batch), 4),
        "speed": comparison.as_dict(),
        "holds": {
            "speed": comparison.ratio("theirs").median >= 0.98,
            "bytes": kept["ours"].at(batch) <= kept["theirs"].at(batch),
        },
    }


def smallest_size(ours: Side, theirs: Side) -> int:
    """The first of SIZES at which both networks train, tried on the meta device.

    Raises NotAvailable where there is none.
    """
    arch = ours.network.partition(":")[2]
    least = max(64, archs.lookup(arch).minimum_size)
    for size in SIZES:
        if size >= least and all(_trains(side, size) for side in (ours, theirs)):
            return size
    raise NotAvailable(f"{ours.network} and {theirs.network} share no image size up to {SIZES[-1]} px")


def _trains(side: Side, size: int) -> bool:
    try:
        with torch.device("meta"):
            model = build_network(side, size)
            loss_of(model(torch.empty(COUNTED, 3, size, size)), torch.zeros(COUNTED, dtype=torch.int64)).backward()
    except (RuntimeError, ValueError, AssertionError):  # how the libraries refuse an image that is too small
        return False
    return True


def table(rows: dict[str, dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """(heads, cells) of the suite's rows, the slowest ratio first."""
    heads = [
        "network",
        "reference",
        "px",
        "ours ÷ theirs",
        "95 % interval",
        "in processor time",
        "kept ours ÷ theirs",
        "holds",
    ]
    cells = []
    for key, row in sorted(rows.items(), key=lambda item: _ratio(item[1])):
        if row["status"] != "measured":
            cells.append([key, row["status"], "", "", "", "", "", row.get("error") or row.get("reason", "")])
            continue
        figures = row["figures"]
        ratio, processor = figures["ratio"], figures["processor_time_ratio"]
        cells.append(
            [
                key,
                row["identity"]["settings"]["reference"],
                str(figures["image_size"]),
                f"{ratio['median']:.3f}",
                f"{ratio['low']:.3f}-{ratio['high']:.3f}",
                f"{processor['median']:.3f} ({processor['low']:.3f}-{processor['high']:.3f})" if processor else "",
                f"{figures['saved_ratio']:.3f}",
                "yes" if all(figures["holds"].values()) else "no",
            ]
        )
    return heads, cells


def _ratio(row: dict[str, Any]) -> float:
    return row["figures"]["ratio"]["median"] if row["status"] == "measured" else -math.inf
