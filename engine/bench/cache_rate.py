"""What decoding once is worth: epochs with --data.cache ram over epochs without, in turns in one process.

`python -m engine.bench.cache_rate --pictures photos flowers` reads the pictures below folders with DALI, crop and
mirror image, at 224 px, and writes profiles/<machine>/cache.json. Building the cache is not in the rates; it is told.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.bench.instrument.measure import settle
from engine.bench.instrument.record import record
from engine.config import DataConfig
from engine.data.backend import make_loader
from engine.data.decoded.choice import decoded_source
from engine.data.fingerprint import fingerprint_of
from engine.data.sources.listing import images_below
from engine.data.sources.source import Source, Split

EVAL_CROP = 0.875
EPOCHS = 4
"""In a turn."""


def seconds(loader: Any, turn: int) -> tuple[float, float]:
    """(seconds, processor seconds) of EPOCHS epochs in a row; not of such that an earlier turn read ahead of."""
    first = turn * (EPOCHS + 1)
    began, used = time.perf_counter(), time.process_time()
    for epoch in range(first, first + EPOCHS):
        for _ in loader.epoch(epoch):
            pass
    taken = time.perf_counter() - began, time.process_time() - used
    settle()
    return taken


def main(arguments: Sequence[str]) -> int:
    """Measure and write; returns 1 where cached epochs are not four times as fast."""
    parser = argparse.ArgumentParser(description="Measure epochs with and without --data.cache ram.")
    parser.add_argument("--pictures", nargs="+", type=Path, required=True, help="folders of pictures")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--image-size", type=int, default=224)
    given = parser.parse_args(arguments)
    paths = [path for folder in given.pictures for path in images_below(folder)]
    split = Split(np.zeros(len(paths), np.int64), paths)
    source = Source(
        "pictures", ["all"], split, split.take(np.arange(1)), (0.5,) * 3, (0.2,) * 3, True, (0.08, 1), EVAL_CROP
    )
    config = DataConfig(cache="ram", image_size=given.image_size, workers=2)
    began = time.perf_counter()
    kept = decoded_source(source, config, EVAL_CROP, fingerprint_of(source))
    kept.forget()
    built = time.perf_counter() - began
    settings = {"config": config, "global_batch": 50, "device": "cpu"}
    loaders = {
        "decode": make_loader(source, "train", **settings),
        "cache": make_loader(kept.source, "train", **settings),
    }
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in loaders}
    for number in range(given.rounds):
        for name in list(loaders)[:: 1 if number % 2 else -1]:
            taken[name].append(seconds(loaders[name], number))
    for loader in loaders.values():
        loader.close()
    rounds = list(zip(taken["decode"], taken["cache"], strict=True))
    ratios = [[before[kind] / after[kind] for before, after in rounds] for kind in (0, 1)]
    wall, processor = (statistics.median(each) for each in ratios)
    shrunk = kept.source.train.decoded.shrunk
    figures = {
        "pictures": len(paths),
        "shrunk": shrunk,
        "built_seconds": round(built, 1),
        "cache_over_decode": round(wall, 2),
        "cache_over_decode_in_processor_time": round(processor, 2),
        "rounds": [[round(value, 2) for value in each] for each in ratios],
        "seconds": {name: [round(wall, 3) for wall, _ in each] for name, each in taken.items()},
        "summary": f"cached epochs {wall:.2f} × decoding ones, in processor time {processor:.2f} ×",
    }
    print(figures["summary"], f"written to {record('cache', figures)}")
    return int(wall < 4)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
