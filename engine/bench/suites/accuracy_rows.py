"""Suite `accuracy`: real training runs of 10 epochs on CIFAR-10, with the recipe that the networks' figures are for.

The recipe is configs/base.yaml: learning rate 0.001, Adam, batch 128, 224 px. Each row is one run in a process of its
own; nothing but torch and accelerate is needed for it.
"""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import archs
from engine.bench.instrument.options import Options
from engine.bench.instrument.peers import NotAvailable, need
from engine.bench.instrument.rows import Row
from engine.bench.suites.run_record import run_figures
from engine.config import DataConfig, LogConfig, ModelConfig, OptimConfig, RunConfig
from engine.runs.provenance import ROOT
from engine.step.plan import Hardware

NETWORKS = ("resnext50", "inceptionv3", "darknet53")
NEARBY = ROOT.parent / "shared" / "data" / "cifar10_jpeg.tar.zst"
"""CIFAR-10 as JPEGs that may lie beside the source tree."""


def rows(options: Options) -> Iterator[Row]:
    """A run a network; on a machine without a GPU at 32 px over a part of the images, which its settings state."""
    cuda, tiny = Hardware.detect().type == "cuda", options.dry_run
    for arch in options.archs or (("resnet18",) if tiny else NETWORKS):
        info = archs.lookup(arch)
        settings = {
            "arch": info.name,
            "epochs": 1 if tiny else 10,
            "batch_size": options.batch_size or (8 if tiny else 128),
            "image_size": options.image_size or (224 if cuda else max(32, info.minimum_size)),
            "limit": 16 if tiny else 0 if cuda else 5000,
        }
        yield Row(info.name, settings, partial(measure, settings, options), seconds=900.0 if cuda else 1200.0)


def measure(settings: dict[str, Any], options: Options, deadline: float) -> dict[str, Any]:
    """What the run reached. Raises NotAvailable without accelerate or the images."""
    need("accelerate")
    data = drawn_classes() if options.dry_run else images(options.data or NEARBY)
    with tempfile.TemporaryDirectory(prefix="bench-accuracy-") as scratch:
        output = Path(scratch) / "run"
        given = settings | {"root": str(data), "output": str(output)}
        done = subprocess.run(
            [sys.executable, "-m", "engine.bench.suites.accuracy_rows", json.dumps(given)],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            raise RuntimeError((done.stderr.strip().splitlines() or [f"the run ended with {done.returncode}"])[-1])
        found = run_figures(output)
    del found["command"]  # a temporary folder's, of no use to anyone
    return found | {"summary": f"{found['best_val_accuracy']:.2%} in {found['seconds']:.0f} s"}


def images(place: Path) -> Path:
    """The folder with train/ and val/ of `place`: a folder with train/ and test/ or val/, or a tar of one.

    Raises NotAvailable where there is none, or nothing here reads its compression.
    """
    if not place.exists():
        raise NotAvailable(f"CIFAR-10 is needed as class folders: --data FOLDER or {NEARBY.name}")
    return _linked(place) if place.is_dir() else _unpacked(place)


@functools.cache
def _linked(folder: Path) -> Path:
    """A folder whose train/ and val/ lead to those of `folder`."""
    if not (folder / "train").is_dir():
        raise NotAvailable(f"{folder} has no train/ of class folders")
    if (folder / "val").is_dir():
        return folder
    if not (folder / "test").is_dir():
        raise NotAvailable(f"{folder} has neither val/ nor test/ of class folders")
    linked = Path(tempfile.mkdtemp(prefix="bench-cifar10-"))
    (linked / "train").symlink_to((folder / "train").resolve())
    (linked / "val").symlink_to((folder / "test").resolve())
    return linked


@functools.cache
def _unpacked(archive: Path) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="bench-cifar10-"))
    if archive.suffix == ".zst":
        if shutil.which("zstd") is None:
            raise NotAvailable("zstd is not installed; unpack the archive and name the folder: --data FOLDER")
        unzipped = subprocess.Popen(["zstd", "-dc", str(archive)], stdout=subprocess.PIPE)
        with tarfile.open(fileobj=unzipped.stdout, mode="r|") as tar:
            tar.extractall(folder, filter="data")
        if unzipped.wait() != 0:
            raise RuntimeError(f"{archive} is not whole")
    else:
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
    inside = folder if (folder / "train").is_dir() else next((path.parent for path in folder.glob("*/train")), folder)
    return _linked(inside)


@functools.cache
def drawn_classes() -> Path:
    """Two classes of 8 + 2 small pictures in a temporary folder, for a dry run."""
    from PIL import Image

    folder = Path(tempfile.mkdtemp(prefix="bench-classes-"))
    for split, count in (("train", 8), ("val", 2)):
        for number, colour in enumerate(((200, 30, 30), (30, 30, 200))):
            (folder / split / f"class{number}").mkdir(parents=True)
            for place in range(count):
                Image.new("RGB", (32, 32), colour).save(folder / split / f"class{number}" / f"{place}.jpg")
    return folder


def run_config(given: dict[str, Any]) -> RunConfig:
    """The run of a row: configs/base.yaml's values are the dataclasses' defaults."""
    tiny = 0 < given["limit"] < 100
    return RunConfig(
        model=ModelConfig(arch=given["arch"], compile="off" if tiny else "auto"),
        data=DataConfig(
            name="folder",
            root=Path(given["root"]),
            image_size=given["image_size"],
            limit=given["limit"],
            workers=1 * tiny,
        ),
        optim=OptimConfig(epochs=given["epochs"], batch_size=given["batch_size"]),
        log=LogConfig(output=Path(given["output"]), plots=False, keep_checkpoints=1),
    )


if __name__ == "__main__":
    from engine.train.run import train

    sys.exit(train(run_config(json.loads(sys.argv[1]))))
