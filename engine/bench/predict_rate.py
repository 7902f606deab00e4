"""Pictures a second of `engine.use.predict` beside a DataLoader loop, on the same files, cores and network.

`python -m engine.bench.predict_rate FOLDER --arch resnet18 --image-size 128` adds a row to profiles/use/predict.json.
The loop is what people write: Pillow, torchvision's transforms, as many worker processes as there are cores, the
network as it is built. Both take turns in one process; wall clock and processor time (of all processes) are medians.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

import archs
from engine.bench.instrument.record import machine
from engine.bench.suites.loader_rate import Pictures
from engine.data.preprocessing import Preprocessing
from engine.data.sources.folder import MEAN, STD
from engine.runs.door import atomic_file
from engine.runs.provenance import ROOT, command, commit, today, versions
from engine.use.pictures import named_pictures
from engine.use.predict import Predictor
from engine.use.weights import Weights

RESULT = ROOT / "profiles" / "use" / "predict.json"
CLASSES = [str(number) for number in range(10)]


def predictor_of(arch: str, image_size: int, batch_size: int, precision: str) -> Predictor:
    """One of an untrained network: what it says does not matter here."""
    torch.manual_seed(0)
    model = archs.build(arch, len(CLASSES), image_size=image_size)
    pixels = Preprocessing(MEAN, STD, 0.875, "bilinear", image_size)
    weights = Weights(Path("drawn"), model.state_dict(), arch, {}, CLASSES, image_size, None, pixels)
    return Predictor(weights, batch_size, precision)


def loop(model: torch.nn.Module, paths: list[str], image_size: int, batch_size: int, workers: int) -> list[int]:
    """The likeliest class of each picture by a DataLoader loop."""
    found: list[int] = []
    with torch.inference_mode():
        for images in DataLoader(Pictures(paths, "val", image_size), batch_size, num_workers=workers):
            found += model(images).argmax(dim=1).tolist()
    return found


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """(wall clock, processor time of this process and its children), seconds."""
    began, used = time.perf_counter(), _processor_time()
    work()
    return time.perf_counter() - began, _processor_time() - used


def _processor_time() -> float:
    kinds = [resource.getrusage(kind) for kind in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in kinds)


def measure(folder: Path, arch: str, image_size: int, precision: str, batch_size: int, turns: int) -> dict[str, Any]:
    """One row. Raises ConfigError for a folder without pictures."""
    paths = named_pictures([str(folder)])
    predictor = predictor_of(arch, image_size, batch_size, precision)
    plain, workers = predictor.weights.build(), len(os.sched_getaffinity(0))
    sides: dict[str, Callable[[], Any]] = {
        "ours": lambda: [int(one.classes[0]) for one in predictor.predict(paths, top_k=1)],
        "loop": lambda: loop(plain, paths, image_size, batch_size, workers),
    }
    first = {name: side() for name, side in sides.items()}  # what is compiled and read at the first call
    same = statistics.mean(one == other for one, other in zip(first["ours"], first["loop"], strict=True))
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(turns):
        for name, side in sides.items():
            seconds[name].append(timed(side))
    row: dict[str, Any] = {"pictures": len(paths), "turns": turns, "cores": workers, "same_class": round(same, 4)}
    for place, kind in enumerate(("wall", "processor")):
        middle = {name: statistics.median(one[place] for one in taken) for name, taken in seconds.items()}
        rates = {f"{name}_per_{kind}_second": round(len(paths) / middle[name], 1) for name in sides}
        row |= rates | {f"{kind}_ratio": round(middle["loop"] / middle["ours"], 2)}
    return row | {"load": round(os.getloadavg()[0], 1)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure one row, write it; returns 1 where predict is not the faster one."""
    parser = argparse.ArgumentParser(description="Time predict beside a DataLoader loop.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--precision", default="fp32", choices=["auto", "fp32", "bf16", "fp16"])
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--turns", type=int, default=5)
    given = parser.parse_args(arguments)
    row = measure(given.folder, given.arch, given.image_size, given.precision, given.batch_size, given.turns)
    key = f"{given.arch} {given.image_size} px {given.precision}"
    document = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {"rows": {}}
    about = {"date": today(), "commit": commit(), "command": command(), "machine": machine(), "versions": versions()}
    document["rows"][key] = about | row
    with atomic_file(RESULT) as temporary:
        temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(key, json.dumps(row))
    return int(row["wall_ratio"] <= 1)


if __name__ == "__main__":
    raise SystemExit(main())
