"""Does fine-tuning pay? A network trained on some classes of a source, then on few pictures of its other classes.

`python -m engine.bench.finetune_gain mnist --held-out 5 6 7 8 9 --work FOLDER` trains ResNet-18 on the other classes,
then every way of WAYS, from those weights and from scratch, for equal steps on the same pictures, with three seeds.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from PIL import Image

from engine.data.sources.open import open_source
from engine.data.sources.source import Source
from engine.runs.door import atomic_file
from engine.runs.provenance import ROOT, command, commit, today, versions

RESULT = ROOT / "profiles" / "use" / "finetune.json"
ARCH, SIZE, SEEDS, TESTED = "resnet18", 32, (0, 1, 2), 100
"""Network, side of its images in pixels, seeds of the pictures and the weights, val pictures a class."""
BEFORE = 2000
"""Training pictures a class of the network that is fine-tuned."""
PRETRAINING = ("--epochs", "2", "--batch-size", "64")
SHOTS = {10: (10, 4), 5: (5, 4), 50: (50, 4)}
"""Training pictures a class -> (pictures a step, passes over them): as many steps in all, four times the classes."""
WAYS = {
    "from scratch": ((), ("0.001", "0.0003", "0.003")),
    "head": (("--finetune", "head"), ("0.01", "0.03")),
    "all": (("--finetune", "all"), ("0.001",)),
}
"""What is trained: its flags beside --pretrained, and the learning rates that are tried."""
FLAGS = ("--arch", ARCH, "--image-size", str(SIZE), "--optim.schedule", "cosine", "--log.no-plots")
DRAWN = ("--data.flip", "off", "--data.crop-scale", "0.8", "1", "--data.eval-crop", "1")
"""Where the source is of digits: they are not mirrored, and not cut in half."""
QUIET = ("--log.monitor-interval", "0", "--log.keep-checkpoints", "1")


def part(source: Source, at: Path, classes: Sequence[str], shots: int, seed: int, passes: int = 1) -> Path:
    """A folder of pictures at `at`: at most `shots` training ones of each class, and TESTED of its val ones.

    passes  names that each training picture has: an epoch, with its evaluation, is so many passes over them
    """
    for name, split, most in (("train", source.train, shots), ("val", source.val, TESTED)):
        for label in classes:
            places = np.flatnonzero(split.labels == source.classes.index(label)).tolist()
            target = at / name / label
            target.mkdir(parents=True)
            for place in random.Random(f"{seed} {name} {label}").sample(places, min(most, len(places))):
                for copy in range(passes if name == "train" else 1):
                    if split.encoded:
                        picture = Path(split.path(place)).resolve()
                        (target / f"{place}-{copy}{picture.suffix}").symlink_to(picture)
                    else:
                        Image.fromarray(split.pixels(place)).save(target / f"{place}-{copy}.png")
    return at


def as_drawn(source: Source) -> Sequence[str]:
    """DRAWN for a source of which a mirrored picture is none of its class."""
    return () if source.flip else DRAWN


def trained(flags: Sequence[str], output: Path) -> dict[str, Any]:
    """Train in this process; see `last_epoch`."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    from engine.config import parse
    from engine.train.run import train

    for state in (AcceleratorState, PartialState, GradientState):  # one a process; here each training begins anew
        state._reset_state()
    if code := train(parse([*FLAGS, *QUIET, *flags, "--output", str(output)])):
        raise RuntimeError(f"the training of {' '.join(flags)} ended with exit code {code}")
    return last_epoch(output)


def last_epoch(run: Path) -> dict[str, Any]:
    """Val accuracy in percent behind a run's last epoch, and the steps that were made."""
    from engine.runs.records import read_records

    row = [row for row in read_records(run / "metrics.jsonl") if row["kind"] == "epoch"][-1]
    return {"accuracy": round(100 * row["val_accuracy"], 2), "steps": row["step"]}


def trained_classes(run: Path) -> set[str]:
    """Names of the classes that a run was trained on. Raises ConfigError as `read_weights`."""
    from engine.use.weights import read_weights

    return set(read_weights(run).class_names())


def how_trained(run: Path) -> dict[str, Any]:
    """What a run was trained with, and what it reached."""
    from engine.config import from_yaml

    config = from_yaml(run / "config.yaml")
    told = {"arch": config.model.arch, "epochs": config.optim.epochs, "batch_size": config.optim.batch_size}
    return told | {"limit": config.data.limit, "classes": sorted(trained_classes(run)), **last_epoch(run)}


def pretrained(source: Source, held_out: Sequence[str], work: Path) -> Path:
    """The run folder of the network that the other classes were trained with; trained where it is not there yet."""
    run = work / "pretrained"
    if not (run / "finished").exists():
        for name in ("pretrained", "others"):
            shutil.rmtree(work / name, ignore_errors=True)
        others = [name for name in source.classes if name not in held_out]
        root = part(source, work / "others", others, BEFORE, 0)
        trained(["--data.root", str(root), *as_drawn(source), *PRETRAINING], run)
        (run / "finished").touch()
    return run


def measure(
    source: Source, held_out: Sequence[str], work: Path, before: Path, shots: int, way: str, rate: str
) -> dict[str, Any]:
    """One row: a way at a rate with `shots` pictures a class, each seed with pictures and weights of its own."""
    batch, passes = SHOTS[shots]
    flags, _ = WAYS[way]
    shape = ["--batch-size", str(batch), "--epochs", "1", "--lr", rate, *as_drawn(source), *flags]
    shape += ["--pretrained", str(before)] if flags else []
    found = []
    for seed in SEEDS:
        with tempfile.TemporaryDirectory(dir=work) as scratch:
            root = part(source, Path(scratch) / "data", held_out, shots, seed, passes)
            found.append(trained([*shape, "--data.root", str(root), "--seed", str(seed)], Path(scratch) / "run"))
    reached = [one["accuracy"] for one in found]
    row = {"pictures_a_class": shots, "steps": found[0]["steps"], "way": way, "lr": float(rate)}
    return row | {"val_accuracy": reached, "mean": round(mean(reached), 2)}


def best(rows: Sequence[dict[str, Any]], way: str, shots: int) -> float | None:
    """Mean accuracy of that way at its best rate; None where it was not measured."""
    found = [row["mean"] for row in rows if (row["way"], row["pictures_a_class"]) == (way, shots)]
    return max(found, default=None)


def margins(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Pictures a class -> way -> percentage points above training from scratch, each at its best rate."""
    found: dict[str, dict[str, float]] = {}
    for shots in sorted({row["pictures_a_class"] for row in rows}):
        base = best(rows, "from scratch", shots)
        others = {way: best(rows, way, shots) for way in WAYS if way != "from scratch"}
        if base is not None:
            found[str(shots)] = {way: round(mean - base, 1) for way, mean in others.items() if mean is not None}
    return found


def read_rows(name: str, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows that RESULT has of this source by these settings; none where it is of others, or not there."""
    found = _document().get(name)
    return found["rows"] if found and found["settings"] == json.loads(json.dumps(settings)) else []


def write(name: str, settings: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """RESULT with these rows of a source, in one step."""
    about = {"date": today(), "commit": commit(), "command": command(), "versions": versions()}
    document = _document() | {name: about | {"settings": settings, "margins": margins(rows), "rows": rows}}
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(RESULT) as temporary:
        temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _document() -> dict[str, Any]:
    return json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what RESULT lacks and write after each row; returns 1 where no way is above training from scratch."""
    parser = argparse.ArgumentParser(description="Measure what fine-tuning gains over training from scratch.")
    parser.add_argument("source", help="mnist, cifar10, digits, or the pictures that --data.root takes")
    parser.add_argument("--root", help="folder of mnist or cifar10")
    parser.add_argument("--held-out", nargs="+", required=True, metavar="CLASS", help="classes to fine-tune on")
    parser.add_argument("--work", type=Path, required=True, help="folder that keeps the network of the other classes")
    parser.add_argument("--before", type=Path, metavar="RUN", help="a run on other classes, in place of training one")
    parser.add_argument("--most", type=int, default=10**6, help="rows to measure now")
    given = parser.parse_args(arguments)
    name = Path(given.source).name
    named = given.source in ("mnist", "cifar10", "digits")
    source = open_source(given.source if named else "folder", given.root if named else given.source)
    for label in given.held_out:
        if label not in source.classes:
            parser.error(f"{given.source} has no class {label}")
    given.work.mkdir(parents=True, exist_ok=True)
    before = given.before or pretrained(source, given.held_out, given.work)
    if known := trained_classes(before) & set(given.held_out):
        parser.error(f"{before} was trained on {', '.join(sorted(known))}")
    settings = {"arch": ARCH, "image_size": SIZE, "flags": [*FLAGS, *as_drawn(source)], "source": given.source}
    settings |= {"held_out": given.held_out, "tested_a_class": TESTED, "before": how_trained(before)}
    rows = read_rows(name, settings)
    asked = [(shots, way, rate) for shots in SHOTS for way, (_, rates) in WAYS.items() for rate in rates]
    there = {(row["pictures_a_class"], row["way"], row["lr"]) for row in rows}
    lacking = [(shots, way, rate) for shots, way, rate in asked if (shots, way, float(rate)) not in there]
    for shots, way, rate in lacking[: given.most]:
        rows.append(measure(source, given.held_out, given.work, before, shots, way, rate))
        write(name, settings, rows)
        print(rows[-1], flush=True)
    found = margins(rows)
    print(json.dumps(found, indent=1))
    return int(not found or max(found[min(found, key=int)].values()) <= 0)


if __name__ == "__main__":
    raise SystemExit(main())
