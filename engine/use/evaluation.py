"""Evaluate saved weights on a validation split: what `launch/evaluate.py` does."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from engine.config import ConfigError, DataConfig, command_line, require
from engine.config.flag import TopLevel
from engine.config.pixels.image_size import ImageSize, sides
from engine.config.reading.numbers import refuse_absurd
from engine.data.fingerprint import fingerprint_of
from engine.data.opened import open_data
from engine.data.preprocessing import Preprocessing
from engine.data.sources import holdout
from engine.data.sources.found import Wanted, source_to_evaluate
from engine.data.sources.layouts.which import read_layout
from engine.data.sources.open import open_source
from engine.data.sources.source import Source
from engine.runs.cache import cache_folder
from engine.runs.output import refuse_folder
from engine.use.weights import Weights, for_use, read_weights

NAMED_SOURCES = ("digits", "mnist", "cifar10")


@dataclass(frozen=True)
class EvaluateConfig:
    """Which weights, on which images."""

    checkpoint: Path
    """A run folder (its best weights), a checkpoint in one (checkpoints/step-…), or a model.safetensors."""
    arch: str | None = None
    """The network, for weights that do not say: timm's and torchvision's files load too."""
    data: str | None = None
    """digits, mnist, cifar10, or images in any layout that --data.root takes; none is what the run was trained on."""
    split: Literal["auto", "val", "test", "train"] = "auto"
    """Which images; auto is val, or what is there where the data was named and has no val."""
    columns: str = ""
    """Columns of a list by what they hold, as 'path=file,label=breed'; empty is guessed and said."""
    root: Path | None = None
    """Folder of mnist or cifar10."""
    image_size: ImageSize = 0
    """Side in pixels, or HEIGHT WIDTH; 0 is the training's."""
    batch_size: int = 128
    """Images at once."""
    backend: Literal["auto", "dali", "torchvision"] = "auto"
    """Who decodes images: DALI, or torchvision with Pillow; auto is DALI where it is installed."""
    precision: Annotated[Literal["auto", "fp32", "bf16", "fp16"], TopLevel] = "auto"
    """Compute dtype; auto as in training."""
    output: Path | None = None
    """Folder for evaluation.json and confusion.png; none is evaluation/ beside the weights."""

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, f"--batch-size must be at least 1 image, not {self.batch_size}")
        least = min(sides(self.image_size))
        require(self.image_size == 0 or least >= 8, f"--image-size must be 8 or more, not {least}")
        refuse_absurd(self)


def parse(arguments: list[str] | None = None) -> EvaluateConfig:
    """The evaluation that is asked for. Raises ConfigError as `command_line`."""
    return command_line(EvaluateConfig, arguments, "Evaluate trained weights on a validation split.")


def choose_source(config: EvaluateConfig, weights: Weights) -> Source:
    """The data that was asked for, else what the run was trained on. Raises DataError and ConfigError."""
    trained = weights.data
    if config.data is None:
        if trained is None:
            raise ConfigError("--data is needed: digits, mnist, cifar10, or a folder")
        return open_data(trained, root=config.root, run=weights.run)
    if config.data in NAMED_SOURCES:
        return open_source(config.data, config.root)
    columns = Wanted(columns=config.columns)
    found = read_layout(Path(config.data).expanduser(), columns, cache_folder(None), "--data")
    return source_to_evaluate(found, weights.classes, None if config.split == "auto" else config.split)


def compare_data(config: EvaluateConfig, source: Source, weights: Weights) -> None:
    """Raise ConfigError unless the data's classes are those that the network was trained on; say if images differ.

    Images are compared where the run's own data is meant: data that was named differs as it should.
    """
    from engine.recovery.same_run import other_images, refuse_other_classes

    refuse_other_classes(weights.classes, source.classes, f"--checkpoint {config.checkpoint}")
    if config.data is None and weights.trained_on is not None:
        change = other_images(weights.trained_on, fingerprint_of(source))
        if change is not None:
            print(f"note: {change} since the weights were trained")
    if config.data is not None and holds_training_images(config.data, weights):
        print(
            f"note: {config.data} has images that the weights were trained on, as the run took its test images out of "
            "it; leave --data out to evaluate on those alone"
        )


def holds_training_images(data: str, weights: Weights) -> bool:
    """Whether the run drew training and test images, as folds or a share, from the data that is named now."""
    trained = weights.data
    if trained is None or not (trained.folds or (weights.run and (weights.run / holdout.NAME).exists())):
        return False
    if data in NAMED_SOURCES:
        return data == trained.name
    here = Path(data).expanduser().resolve()
    root = Path(trained.root or "").resolve()
    return trained.root is not None and (root == here or root in here.parents)


def run_evaluation(config: EvaluateConfig) -> dict:
    """Evaluate, write evaluation.json and confusion.png, return the figures (engine.report.evaluation_report).

    Raises ConfigError and DataError.
    """
    beside = config.checkpoint if config.checkpoint.is_dir() else config.checkpoint.parent
    output = config.output or beside / "evaluation"
    refuse_folder(output)
    weights = read_weights(config.checkpoint, config.arch)
    count = weights.class_count
    source = choose_source(config, weights)
    compare_data(config, source, weights)
    judged = config.split if config.split != "auto" else "val" if config.data is None else ""
    split: Literal["val", "test"] = "test" if config.split == "test" else "val"
    if config.split == "train":  # in order and as they are, not shuffled and augmented
        source = replace(source, val=source.train)
    import torch

    from engine.data.backend import make_loader
    from engine.report.evaluation_report import write_evaluation
    from engine.step.device_memory.batch import refuse_batch
    from engine.step.plan import use_cuda
    from engine.train.evaluate import evaluate as measured
    from engine.train.evaluate import refuse_lost, refuse_none

    require(
        count == len(source.classes),
        f"{weights.path} is for {count} classes, and the data has {len(source.classes)}",
    )
    device = torch.device("cuda" if use_cuda() else "cpu")
    shown = min(config.batch_size, len(source.split(split)))
    if config.image_size:
        refuse_batch(shown, config.image_size, weights.expected().channels)
    else:
        weights.refuse_batch(shown)
    model, forward = for_use(weights, device, config.precision)
    if config.image_size:
        try:
            model.refuse_size(*sides(config.image_size))
        except ValueError as error:
            raise ConfigError(f"--image-size: {error}") from None
    data = DataConfig(image_size=weights.image_size, backend=config.backend)
    expected = weights.preprocessing
    if expected is None:
        expected = Preprocessing.of(source, data)
        print(f"{weights.path} does not say which pixels it expects; assumed: {expected.describe()}")
    data = expected.into(data)
    data = replace(data, image_size=config.image_size or data.image_size)
    loader = make_loader(source, split, config=data, global_batch=config.batch_size, device=device)

    try:
        result = measured(forward, refuse_lost(loader), len(source.classes), device, config.batch_size, confusion=True)
    finally:
        loader.close()
    refuse_none(result, loader)
    assert result.confusion is not None  # it was asked for
    for bad in loader.bad_images:
        print(f"unreadable image, left out: {bad.path} ({bad.reason})")
    return write_evaluation(
        output,
        result.confusion.numpy(),
        source.classes,
        loss=result.loss,
        top1=result.top1,
        top5=result.top5,
        count=result.count,
        split=judged,
    ) | {"output": str(output)}


def evaluate(checkpoint: str | Path, data: str | None = None, **settings: Any) -> dict:
    """Evaluate weights, write evaluation.json and confusion.png beside them, and return the figures.

    data      digits, mnist, cifar10 or a folder; None is what the run was trained on
    settings  the other fields of EvaluateConfig

    Raises ConfigError and DataError.
    """
    return run_evaluation(EvaluateConfig(Path(checkpoint), data=data, **settings))
