"""The learning repository's table with our runs beside its figures: a row a run, and an empty one for what was not run.

Its figures are those of its README: CIFAR-10, 10 epochs, batch 128, 224 px. They stand beside runs on CIFAR-10 alone;
every row says at which size, on what and by which command it was made.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import archs
from engine.config.pixels.image_size import sides, size_from, size_in_words
from engine.report.arch_table import LEARNING_REPOSITORY, short
from engine.runs.history import History, NotARun, read_history
from engine.runs.wording import gib, number

THEIRS: dict[str, float] = {
    "AlexNet": 71.27,
    "VGG-11": 75.93,
    "NIN": 71.03,
    "ResNet-18": 74.9,
    "DenseNet-40": 68.25,
    "MobileNetV1": 81.72,
    "MobileNetV2": 83.99,
    "GoogLeNet": 80.28,
    "Xception": 85.9,
    "SE-ResNet-18": 83.39,
    "SqueezeNet": 62.2,
    "EfficientNetV2-S": 74.6,
    "ViT": 55.34,
    "MLP-Mixer": 69.5,
    "ResMLP": 65.5,
    "gMLP": 71.69,
    "AlexNet, CyclicLR": 79.56,
    "ResNet-18, SAM": 76.2,
}
"""Test accuracy in percent; its table has none for InceptionV3, Darknet-53, ResNeXt, ShuffleNet and EfficientNet-B0."""
CIFAR10 = {"airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"}


@dataclass(frozen=True)
class Line:
    """One row; what is not known is None, and stays empty on the page."""

    network: str
    theirs: float | None = None
    """Percent."""
    ours: float | None = None
    """Percent: on the test split where the run had one, else the best val accuracy of an epoch."""
    parameters: int | None = None
    multiply_adds: int | None = None
    """Of one image at the run's size."""
    image_size: int | str | None = None
    """Side in pixels, or `HEIGHTxWIDTH`."""
    data: str = ""
    epochs: str = ""
    batch: int | None = None
    plan: str = ""
    images_per_second: float | None = None
    peak_memory_bytes: int | None = None
    joules_per_image: float | None = None
    """Energy of the whole run, evaluations included, over the training images seen; None where NVML told none."""
    schedule: str = ""
    seed: int | None = None
    state: str = ""
    run: str = ""
    command: str = ""


HEADS: tuple[tuple[str, str], ...] = (
    ("network", "network"),
    ("theirs", "theirs %"),
    ("ours", "ours %"),
    ("parameters", "parameters"),
    ("multiply_adds", "multiply-adds"),
    ("image_size", "px"),
    ("data", "data"),
    ("epochs", "epochs"),
    ("batch", "batch"),
    ("plan", "plan"),
    ("images_per_second", "images/s"),
    ("peak_memory_bytes", "peak memory"),
    ("joules_per_image", "J/image"),
    ("schedule", "optimizer, schedule"),
    ("seed", "seed"),
    ("state", "state"),
    ("run", "run"),
    ("command", "command"),
)
"""Field of a Line and its head."""


def cell(line: Line, field: str) -> str:
    """A field as text; empty where it is not known."""
    value = getattr(line, field)
    if value is None or value == "":
        return ""
    if field in ("theirs", "ours"):
        return number(value, 2)
    if field in ("parameters", "multiply_adds"):
        return short(value)
    if field == "images_per_second":
        return number(value, 0)
    if field == "joules_per_image":
        return number(value, 3, significant=True)
    return gib(value) if field == "peak_memory_bytes" else str(value)


def find_runs(places: Iterable[Path]) -> list[Path]:
    """The run folders among `places`, and those inside one that is none itself. Raises NotARun for a place without."""
    found: list[Path] = []
    for place in map(Path, places):
        if any((place / name).is_file() for name in ("config.yaml", "metrics.jsonl")):
            found.append(place)
            continue
        names = ("config.yaml", "metrics.jsonl")
        inside = sorted({path.parent for name in names for path in place.glob(f"*/{name}") if path.is_file()})
        if not inside:
            raise NotARun(f"{place}: neither a run nor a folder of runs")
        found += inside
    return found


def leaderboard(folders: Iterable[Path], kept: Iterable[Line] = ()) -> list[Line]:
    """Lines in the learning repository's order, the best of a network's runs first; other networks behind. `kept` are
    lines of runs whose folders are elsewhere by now; a folder of the same run stands in their place. Raises NotARun."""
    lines = [line_of(read_history(folder)) for folder in folders]
    here = {line.run for line in lines}
    lines += [line for line in kept if line.run and line.run not in here]
    lines.sort(key=lambda line: -(line.ours or 0.0))
    order = [name for name, *_ in LEARNING_REPOSITORY]
    order += [name for name in THEIRS if name not in order]
    table: list[Line] = []
    for name in order:
        own = [line for line in lines if line.network == name]
        beside = any(line.theirs is not None for line in own)  # runs on other data do not stand for its figure
        table += own if beside or (own and name not in THEIRS) else [Line(name, THEIRS.get(name)), *own]
    return table + sorted((line for line in lines if line.network not in order), key=lambda line: line.network)


def line_of(history: History) -> Line:
    """One run as a row."""
    optim, data = _group(history, "optim"), _group(history, "data")
    facts = _weights_facts(history.folder)
    network, size = _their_name(history, optim), size_from(data.get("image_size") or 0)
    classes, width = len(facts.get("classes") or ()) or 10, _group(history, "model").get("width") or 1.0
    parameters, adds = network_facts(history.arch, classes, size or 0, width)
    best, start = history.best, next((row for row in history.events if row.get("event") == "start"), {})
    reached = (history.test or {}).get("test_accuracy") or (best or {}).get("val_accuracy")
    on_cifar = data.get("name") == "cifar10" or set(facts.get("classes") or ()) == CIFAR10
    energy = history.summary["energy_joules"]
    images = sum(row.get("train_images") or 0 for row in history.epochs)
    return Line(
        network=network,
        theirs=THEIRS.get(network) if on_cifar else None,
        ours=round(100 * reached, 4) if reached is not None else None,
        parameters=parameters,
        multiply_adds=adds,
        image_size=size if isinstance(size, int) else size_in_words(size),
        data="cifar10" if on_cifar else str(data.get("name") or ""),
        epochs=f"{len(history.epochs)} of {history.epochs_asked or '?'}",
        batch=history.plan.get("global_batch_size") or optim.get("batch_size"),
        plan=plan_text(history.plan),
        images_per_second=history.images_per_second,
        peak_memory_bytes=history.peak_memory_bytes,
        joules_per_image=energy / images if energy and images else None,
        schedule=schedule_text(optim, history.config.get("recipe")),
        seed=history.config.get("seed"),
        state=history.state,
        run=history.name,
        command=str(start.get("command") or ""),
    )


def plan_text(plan: dict[str, Any]) -> str:
    """`bf16, 64 × 2, block, compiled` on the device's name; empty without a plan."""
    if not plan:
        return ""
    split = [str(plan.get("micro_batch_size", "?"))]
    split += [str(plan[name]) for name in ("accumulation", "ranks") if (plan.get(name) or 1) > 1]
    parts = [str(plan.get("precision", "?")), " × ".join(split)]
    parts += [f"recompute {plan['recompute']}"] if plan.get("recompute") not in (None, "none") else []
    parts += ["compiled"] if plan.get("compile") else []
    parts += ["FSDP2"] if plan.get("fsdp") else [f"ZeRO-{plan['zero_stage']}"] if plan.get("zero_stage") else []
    return ", ".join(parts) + (f" on {plan['device_name']}" if plan.get("device_name") else "")


def schedule_text(optim: dict[str, Any], recipe: Any) -> str:
    """`sgd 0.1 cosine`, and the recipe that it is from."""
    parts = [str(optim[name]) for name in ("optimizer", "lr", "schedule") if optim.get(name) is not None]
    parts += [f"SAM {optim['sam']:g}"] if optim.get("sam") else []
    return " ".join(parts) + (f" ({recipe})" if recipe else "")


@functools.cache
def network_facts(arch: str, classes: int, size: int, width: float = 1.0) -> tuple[int | None, int | None]:
    """(parameters, multiply-adds of one image of that size), counted on meta tensors; None where it cannot be built."""
    options = {} if width == 1.0 else {"width": width}
    import torch

    from archs.cost import multiply_adds

    try:
        with torch.device("meta"):
            model = archs.build(arch, classes, image_size=size or None, **options)
        parameters = sum(parameter.numel() for parameter in model.parameters())
    except (ValueError, TypeError, RuntimeError, NotImplementedError, ImportError):
        return None, None
    try:
        return parameters, multiply_adds(model, *sides(size)) if size else None
    except (ValueError, RuntimeError, NotImplementedError):
        return parameters, None


def _their_name(history: History, optim: dict[str, Any]) -> str:
    """The learning repository's name of the network that was trained, else ours."""
    try:
        arch = archs.lookup(history.arch).name
    except ValueError:
        return history.arch or history.name
    name = next((theirs for theirs, _, ours, _ in LEARNING_REPOSITORY if ours == arch), arch)
    variants = {"ResNet-18": ("SAM", optim.get("sam")), "AlexNet": ("CyclicLR", optim.get("schedule") == "triangular")}
    word, has = variants.get(name, ("", False))
    return f"{name}, {word}" if has else name


def _weights_facts(folder: Path) -> dict[str, Any]:
    """Classes, as the run's weights name them; empty where there are none."""
    from safetensors import SafetensorError, safe_open

    from engine.config import ConfigError
    from engine.runs.weights_facts import WeightsFacts

    path = folder / "model.safetensors"
    try:
        with safe_open(path, framework="numpy") as file:
            return {"classes": WeightsFacts.from_metadata(file.metadata(), str(path)).classes}
    except (OSError, SafetensorError, ConfigError):
        return {}


def _group(history: History, name: str) -> dict[str, Any]:
    found = history.config.get(name)
    return found if isinstance(found, dict) else {}
