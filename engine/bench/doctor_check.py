"""Does the examination of a data set find what was planted, and only that, and how long does it take?

`python -m engine.bench.doctor_check --pictures photos flowers --timed cifar10/train` takes pictures below folders. A
training split has all of them, a held-out one a changed copy of every second: byte for byte, or a KIND of the changes
in turn. What is found without any copies is an alarm; whether it is a false one is for the eye: sheets of those pairs
are written where --alarms says. --timed examines 10,000 pictures of its folder, --made 10,000 of 500 × 375 pixels that
are each one of the pictures laid half over another: as large as photographs, and each unlike the others.
"""

from __future__ import annotations

import argparse
import io
import random
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from engine.bench.instrument.record import record
from engine.data.doctor.examine import examine
from engine.data.doctor.findings import Findings
from engine.data.sources.listing import images_below
from engine.data.sources.source import Source, Split

TIMED = 10_000
MADE_OF = 250
"""Pictures of which double exposures are made."""
MADE_SIZE = 500, 375


def recompressed(image: Image.Image, draw: random.Random) -> Image.Image:
    """JPEG at quality 30 to 90."""
    data = io.BytesIO()
    image.save(data, "JPEG", quality=draw.randint(30, 90))
    return Image.open(io.BytesIO(data.getvalue()))


def resized(image: Image.Image, draw: random.Random) -> Image.Image:
    """0.4 to 1.7 times as large, saved anew."""
    scale = draw.uniform(0.4, 1.7)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return recompressed(image.resize(size, Image.Resampling.BICUBIC), draw)


def cropped(image: Image.Image, draw: random.Random) -> Image.Image:
    """Up to 8 % off each side, saved anew."""
    left, top, right, bottom = (draw.uniform(0, 0.08) for _ in range(4))
    box = image.width * left, image.height * top, image.width * (1 - right), image.height * (1 - bottom)
    return recompressed(image.crop(tuple(round(value) for value in box)), draw)


KINDS: dict[str, Callable[[Image.Image, random.Random], Image.Image] | None] = {
    "exact": None,
    "recompressed": recompressed,
    "resized": resized,
    "cropped": cropped,
}


def set_of(train: Sequence[str], val: Sequence[str]) -> Source:
    """A source of one class over these files."""
    splits = [Split(np.zeros(len(paths), np.int64), list(paths)) for paths in (train, val)]
    return Source("planted", ["all"], *splits, (0.5,) * 3, (0.2,) * 3, True, (0.08, 1.0), 0.875)


def plant(paths: Sequence[str], folder: Path, seed: int = 0) -> dict[str, str]:
    """Write changed copies of every second picture; returns the kind of each copy by its path."""
    draw, planted = random.Random(seed), {}
    for place, path in enumerate(paths[::2]):
        kind, change = list(KINDS.items())[place % len(KINDS)]
        target = folder / f"{place:05}-{kind}.jpg"
        if change is None:
            target.write_bytes(Path(path).read_bytes())
        else:
            with Image.open(path) as image:
                changed = change(image.convert("RGB"), draw)
                changed.convert("RGB").save(target, quality=95)
        planted[str(target)] = kind
    return planted


def found_of(findings: Findings, planted: dict[str, str], paths: Sequence[str]) -> dict[str, dict[str, int]]:
    """Of each kind, how many were planted and how many were found beside their original, as leaks."""
    origin = dict(zip(planted, paths[::2], strict=True))
    hits: set[str] = set()
    for group in findings.chosen("leaks"):
        names = {one.name for one in group.members}
        hits |= {copy for copy in names & planted.keys() if origin[copy] in names}
    result: dict[str, dict[str, int]] = defaultdict(lambda: {"planted": 0, "found": 0})
    for copy, kind in planted.items():
        result[kind]["planted"] += 1
        result[kind]["found"] += copy in hits
    return dict(result)


def double_exposures(paths: Sequence[str], folder: Path, count: int, seed: int = 0) -> list[str]:
    """Write `count` JPEGs, each the mean of another pair of the pictures; returns their paths.

    Raises ValueError where the pictures have fewer pairs.
    """
    shown = []
    for place in np.linspace(0, len(paths) - 1, min(MADE_OF, len(paths))).astype(int):
        with Image.open(paths[place]) as image:
            shown.append(image.convert("RGB").resize(MADE_SIZE, Image.Resampling.BILINEAR))
    pairs = [(one, other) for one in range(len(shown)) for other in range(one)]
    if len(pairs) < count:
        raise ValueError(f"{len(pairs)} pairs of {len(shown)} pictures for {count} double exposures")
    random.Random(seed).shuffle(pairs)

    def write(number: int) -> str:
        one, other = (shown[place] for place in pairs[number])
        target = folder / f"{number:05}.jpg"
        Image.blend(one, other, 0.5).save(target, quality=85)
        return str(target)

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(write, range(count)))


def timed_examination(paths: Sequence[str]) -> dict[str, Any]:
    """Seconds of examining these pictures, and how many groups were found."""
    began, used = time.perf_counter(), time.process_time()
    found = examine(set_of(paths, []))
    seconds, used = time.perf_counter() - began, time.process_time() - used
    return {
        "pictures": len(paths),
        "seconds": round(seconds, 1),
        "processor_seconds": round(used, 1),
        "found": dict(Counter("exact" if group.exact else "near" for group in found.groups)),
    }


def alarm_sheets(findings: Findings, folder: Path) -> None:
    """A picture of each group that was found where nothing was planted."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, group in enumerate(findings.groups):
        sheet = Image.new("RGB", (320 * len(group.members), 240))
        for place, one in enumerate(group.members):
            with Image.open(one.name) as image:
                shown = image.convert("RGB")
                shown.thumbnail((320, 240))
                sheet.paste(shown, (320 * place, 0))
        sheet.save(folder / f"{number:03}.png")


def main(arguments: Sequence[str]) -> int:
    """Plant, examine, write profiles/<machine>/doctor.json; returns 1 where copies or too many others are missed."""
    parser = argparse.ArgumentParser(description="Measure what the examination of data finds.")
    parser.add_argument("--pictures", nargs="+", type=Path, required=True, help="folders of pictures, each once")
    parser.add_argument("--timed", type=Path, help="folder of 10,000 pictures or more")
    parser.add_argument("--made", action="store_true", help="time pictures that are made of those of --pictures, too")
    parser.add_argument("--alarms", type=Path, help="folder for sheets of what is found in the pictures themselves")
    given = parser.parse_args(arguments)
    paths = [path for folder in given.pictures for path in images_below(folder)]
    clean = examine(set_of(paths, []))
    if given.alarms:
        alarm_sheets(clean, given.alarms)
    with tempfile.TemporaryDirectory() as scratch:
        planted = plant(paths, Path(scratch))
        kinds = found_of(examine(set_of(paths, list(planted))), planted, paths)
    figures = {"pictures": len(paths), "kinds": kinds, "pairs_in_the_pictures_themselves": len(clean.groups)}
    if given.timed:
        several = images_below(given.timed)
        chosen = [several[place] for place in np.linspace(0, len(several) - 1, TIMED).astype(int)]
        figures["timed"] = timed_examination(chosen)
    if given.made:
        with tempfile.TemporaryDirectory() as scratch:
            figures["made"] = timed_examination(double_exposures(paths, Path(scratch), TIMED))
    told = ", ".join(f"{kind} {one['found']} of {one['planted']}" for kind, one in kinds.items())
    figures["summary"] = f"found: {told}; {len(clean.groups)} pairs in the {len(paths)} pictures themselves"
    for name in ("timed", "made"):
        if name in figures:
            figures["summary"] += f"; {name}: {figures[name]['pictures']} pictures in {figures[name]['seconds']} s"
    print(figures["summary"])
    print(f"written to {record('doctor', figures)}")
    least = {kind: 1.0 if kind == "exact" else 0.95 for kind in kinds}
    return int(any(one["found"] < least[kind] * one["planted"] for kind, one in kinds.items()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
