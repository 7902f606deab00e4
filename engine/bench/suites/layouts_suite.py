"""Suite `layouts`: shards against loose files, a list of a million rows opened, and memory over forty epochs."""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from engine.bench.instrument import list_opened
from engine.bench.instrument.measure import interleave
from engine.bench.instrument.options import Options
from engine.bench.instrument.peers import need
from engine.bench.instrument.rows import Row
from engine.bench.suites.loader_rate import drawn_photos, nearby_photos, photos
from engine.config import DataConfig
from engine.data.backend import make_loader
from engine.data.shards.read import read_shards
from engine.data.shards.write import make_shards
from engine.data.sources.found import source_to_evaluate
from engine.data.sources.source import Source
from engine.runs.provenance import ROOT

CLASSES = 1000
KINDS = ("csv", "jsonl", "parquet")


def rows(options: Options) -> Iterator[Row]:
    """Lists, then the speed of shards, then memory."""
    tiny = options.dry_run
    speed = {
        "image_size": options.image_size or (16 if tiny else 224),
        "batch_size": options.batch_size or (4 if tiny else 32),
        "rounds": options.rounds or (1 if tiny else 9),
        "epochs": 1 if tiny else 2,
    }
    for kind in KINDS:
        listed = {"kind": kind, "rows": 2000 if tiny else 1_000_000, "rounds": 1 if tiny else min(3, speed["rounds"])}
        yield Row(f"list {kind}", listed, partial(measure_list, *listed.values()), seconds=60.0)
    yield Row("shards ÷ files", speed, partial(measure_speed, speed, options), seconds=60.0)
    drift = {"epochs": 3 if tiny else 40, "image_size": 16 if tiny else 64, "batch_size": 4 if tiny else 32}
    for layout, more in (("files", {}), ("shards", {}), ("files", {"arenas": 1})):
        name = f"memory {layout}{', one arena' if more else ''}"
        yield Row(
            name, {"layout": layout, **drift, **more}, partial(measure_drift, layout, drift, options, **more), 60.0
        )


def pictures(options: Options) -> Path:
    """The folder of photographs. Raises NotAvailable without one."""
    return options.photos or (drawn_photos() if options.dry_run else nearby_photos())


def of_shards(source: Source, folder: Path) -> Source:
    """The same images in shards in `folder`."""
    make_shards(source, folder, 16 << 20, 2)
    return source_to_evaluate(read_shards(folder), None, "train")


def measure_speed(settings: dict[str, Any], options: Options, deadline: float = math.inf) -> dict[str, Any]:
    """Images/s of training crops from shards and from files, in turns. Raises NotAvailable without DALI."""
    need("nvidia.dali")
    files = photos(pictures(options))
    with tempfile.TemporaryDirectory() as scratch:
        found = {"shards": of_shards(files, Path(scratch) / "shards"), "files": files}
        config = DataConfig(image_size=settings["image_size"], backend="dali", workers=2)
        loaders = {
            name: make_loader(source, "train", config=config, global_batch=settings["batch_size"], device="cpu")
            for name, source in found.items()
        }
        turn = iter(range(10**9))

        def rate(name: str) -> float:
            epoch, seen = next(turn), 0
            began = time.perf_counter()
            for more in range(settings["epochs"]):
                for batch in loaders[name].epoch(epoch + more):
                    seen += batch.count
            return seen / (time.perf_counter() - began)

        try:
            sides = {name: partial(rate, name) for name in loaders}
            return interleave(sides, settings["rounds"], deadline=deadline).as_dict()
        finally:
            for loader in loaders.values():
                loader.close()


# --- in processes of their own -------------------------------------------------------------------------------------


def asked_of_a_child(module: str, environment: dict[str, str] | None = None, **settings: Any) -> dict[str, Any]:
    """What a module, as a process of its own, says of its memory and time; `environment` is added to this one's."""
    command = [sys.executable, "-m", module, json.dumps(settings)]
    around = os.environ | (environment or {})
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=around)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1])
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure_drift(
    layout: str, settings: dict[str, Any], options: Options, deadline: float = math.inf, arenas: int = 0
) -> dict:
    """Resident bytes after each epoch of one loader; drift is the last quarter's median over the second's.

    arenas  from which glibc gives memory to all threads together; 0 is as many as it likes. What grows with many and
            not with one is lost between the threads that read files, not kept by anybody.
    """
    need("nvidia.dali")
    folder = str(pictures(options).resolve())
    environment = {"MALLOC_ARENA_MAX": str(arenas)} if arenas else {}
    found = asked_of_a_child(__name__, environment, folder=folder, layout=layout, **settings)
    resident = found["resident_bytes"]
    part = max(1, len(resident) // 4)
    drift = statistics.median(resident[-part:]) / statistics.median(resident[part : 2 * part]) - 1
    summary = f"{100 * drift:+.2f} % over {len(resident) - 2 * part} epochs after the first {part}"
    return found | {"drift": round(drift, 5), "summary": summary}


def measure_list(kind: str, rows: int, rounds: int, deadline: float = math.inf) -> dict[str, Any]:
    """Seconds and peak resident bytes of opening a list of made-up paths."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / f"list.{kind}"
        write_list(path, rows)
        found = [asked_of_a_child(list_opened.__name__, path=str(path)) for _ in range(rounds)]
    seconds = statistics.median(one["seconds"] for one in found)
    peak = max(one["peak_bytes"] for one in found)
    return {
        "rows": rows,
        "seconds": seconds,
        "peak_bytes": peak,
        "bytes_before": found[0]["bytes_before"],
        "each": [one["seconds"] for one in found],
        "summary": f"{rows:,} rows in {seconds:.1f} s, {peak / 2**20:.0f} MiB at most",
    }


def write_list(path: Path, rows: int) -> None:
    """Made-up paths of CLASSES classes, a fifth of them for validation."""
    import pyarrow as pa
    from pyarrow import csv, parquet

    numbers = range(rows)
    table = pa.table(
        {
            "path": [f"images/class{number % CLASSES:04d}/photograph_{number:08d}.jpg" for number in numbers],
            "label": [f"class{number % CLASSES:04d}" for number in numbers],
            "split": ["val" if number // CLASSES % 5 == 1 else "train" for number in numbers],
        }
    )
    if path.suffix == ".csv":
        csv.write_csv(table, path)
    elif path.suffix == ".parquet":
        parquet.write_table(table, path)
    else:
        with path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in table.to_pylist())


def run_epochs(folder: str, layout: str, epochs: int, image_size: int, batch_size: int) -> dict[str, Any]:
    """In a process of its own: resident bytes after each epoch."""
    import psutil

    torch.set_num_threads(1)
    source, resident = photos(Path(folder)), []
    with tempfile.TemporaryDirectory() as scratch:
        if layout == "shards":
            source = of_shards(source, Path(scratch) / "shards")
        config = DataConfig(image_size=image_size, backend="dali", workers=2)
        loader = make_loader(source, "train", config=config, global_batch=batch_size, device="cpu")
        try:
            for epoch in range(epochs):
                for _ in loader.epoch(epoch):
                    pass
                resident.append(psutil.Process().memory_info().rss)
        finally:
            loader.close()
    return {"resident_bytes": resident, "images": len(source.train)}


if __name__ == "__main__":
    print(json.dumps(run_epochs(**json.loads(sys.argv[1]))))
