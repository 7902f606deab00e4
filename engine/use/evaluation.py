"""Evaluate saved weights on a validation split: what `launch/evaluate.py` does."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from engine.config import ConfigError, DataConfig, command_line, find_run, from_yaml, require
from engine.config.flag import TopLevel
from engine.data.fingerprint import Fingerprint, fingerprint_of
from engine.data.preprocessing import Preprocessing
from engine.data.sources.open import open_source
from engine.data.sources.source import Source
from engine.runs.weights_facts import WeightsFacts, refuse_damaged

NAMED_SOURCES = ("digits", "mnist", "cifar10")


@dataclass(frozen=True)
class EvaluateConfig:
    """Which weights, on which images."""

    checkpoint: Path
    """A run folder (its best weights), a checkpoint in one (checkpoints/step-…), or a model.safetensors."""
    data: str | None = None
    """digits, mnist, cifar10, or a folder with val/ and train/; none is what the run was trained on."""
    root: Path | None = None
    """Folder of mnist or cifar10."""
    image_size: int = 0
    """Height and width in pixels; 0 is the training's."""
    batch_size: int = 128
    """Images at once."""
    precision: Annotated[Literal["auto", "fp32", "bf16", "fp16"], TopLevel] = "auto"
    """Compute dtype; auto as in training."""
    output: Path | None = None
    """Folder for evaluation.json and confusion.png; none is evaluation/ beside the weights."""

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, f"--batch-size must be at least 1 image, not {self.batch_size}")
        require(self.image_size == 0 or self.image_size >= 8, f"--image-size must be 8 or more, not {self.image_size}")


def parse(arguments: list[str] | None = None) -> EvaluateConfig:
    """The evaluation that is asked for. Raises ConfigError as `command_line`."""
    return command_line(EvaluateConfig, arguments, "Evaluate trained weights on a validation split.")


@dataclass(frozen=True)
class Weights:
    """A network's tensors and what they were trained as."""

    tensors: dict
    arch: str
    options: dict
    """What `archs.build` was told beside the name."""
    classes: list[str] | None
    image_size: int
    data: DataConfig | None
    preprocessing: Preprocessing | None = None
    """The pixels they expect; None where nobody wrote it down."""
    trained_on: Fingerprint | None = None


def read_weights(path: Path) -> Weights:
    """Load weights without pickle from any of the places that a run leaves them in.

    Raises ConfigError for a path that holds none, or a file that does not say which network it is of.
    """
    from safetensors import SafetensorError, safe_open

    from engine.recovery.checkpoint import checkpoint_to_resume, read_state
    from engine.step.network import network_options

    if path.is_dir() and (path / "config.yaml").is_file():
        path = path / "model.safetensors"
        require(path.is_file(), f"--checkpoint {path.parent}: no model.safetensors yet; name a checkpoint in it")
    if path.suffix == ".safetensors":
        require(path.is_file(), f"--checkpoint {path}: no such file")
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
                metadata = file.metadata()
        except (SafetensorError, OSError) as error:
            raise ConfigError(f"--checkpoint {path} cannot be read: {error}") from error
        facts = WeightsFacts.from_metadata(metadata, f"--checkpoint {path}")
        refuse_damaged(tensors, metadata, f"--checkpoint {path}")
        run = path.parent / "config.yaml"
        data = from_yaml(run).data if run.is_file() else None
        said, trained_on = facts.preprocessing, Fingerprint.from_dict(facts.data)
        expected = Preprocessing.from_json(said) if said else None
        return Weights(tensors, facts.arch, facts.options, facts.classes, facts.image_size, data, expected, trained_on)
    checkpoint = checkpoint_to_resume(path, path / "checkpoints")
    if checkpoint is None:
        raise ConfigError(f"--checkpoint {path}: neither a run folder, nor a checkpoint, nor a .safetensors")
    config = from_yaml(find_run(str(checkpoint)) / "config.yaml")
    state = read_state(checkpoint / "trainer.pt")
    require("model" in state, f"--checkpoint {path} is sharded by DeepSpeed; evaluate the run folder's best weights")
    model, data, trained_on = config.model, config.data, Fingerprint.from_dict(state.get("data"))
    tensors = state["average"]["tensors"] if "average" in state else state["model"]  # as the run itself evaluates
    options, classes, expected = network_options(model), trained_on and trained_on.classes, Preprocessing.named_by(data)
    return Weights(tensors, model.arch, options, classes, data.image_size, data, expected, trained_on)


def choose_source(config: EvaluateConfig, trained: DataConfig | None) -> Source:
    """The data that was asked for, else what the run was trained on. Raises DataError and ConfigError."""
    if config.data is None:
        if trained is None:
            raise ConfigError("--data is needed: digits, mnist, cifar10, or a folder")
        return open_source(trained.name, config.root or trained.root, download=trained.download)
    if config.data in NAMED_SOURCES:
        return open_source(config.data, config.root)
    return open_source("folder", Path(config.data))


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


def run_evaluation(config: EvaluateConfig) -> dict:
    """Evaluate, write evaluation.json and confusion.png, return the figures (engine.report.evaluation_report).

    Raises ConfigError and DataError.
    """
    weights = read_weights(config.checkpoint)
    source = choose_source(config, weights.data)
    compare_data(config, source, weights)
    import torch

    import archs
    from engine.data.backend import make_loader
    from engine.report.evaluation_report import write_evaluation
    from engine.step.plan import Hardware, choose_precision
    from engine.step.wrap import AUTOCAST_DTYPES
    from engine.train.evaluate import evaluate

    hardware = Hardware.detect()
    device = torch.device(hardware.type)
    precision = choose_precision(config.precision, hardware)
    model = archs.build(weights.arch, len(source.classes), image_size=weights.image_size, **weights.options)
    if config.image_size:
        try:
            model.refuse_size(config.image_size, config.image_size)
        except ValueError as error:
            raise ConfigError(f"--image-size: {error}") from None
    try:
        model.load_state_dict(weights.tensors)
    except RuntimeError as error:
        raise ConfigError(
            f"the weights do not fit {weights.arch} with {len(source.classes)} classes: {error}"
        ) from None
    model.to(device).to(memory_format=torch.channels_last).eval()
    data = DataConfig(image_size=weights.image_size)
    if weights.preprocessing is None:
        assumed = Preprocessing.of(source, data)
        print(f"{config.checkpoint} does not say which pixels it expects; assumed: {assumed.describe()}")
    data = (weights.preprocessing or assumed).into(data)
    data = replace(data, image_size=config.image_size or data.image_size)
    loader = make_loader(source, "val", config=data, global_batch=config.batch_size, device=device)

    def forward(images: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, AUTOCAST_DTYPES[precision], enabled=precision != "fp32"):
            return model(images)

    try:
        result = evaluate(forward, loader.epoch(0), len(source.classes), device, config.batch_size, confusion=True)
    finally:
        loader.close()
    assert result.confusion is not None  # it was asked for
    for bad in loader.bad_images:
        print(f"unreadable image, left out: {bad.path} ({bad.reason})")
    beside = config.checkpoint if config.checkpoint.is_dir() else config.checkpoint.parent
    output = config.output or beside / "evaluation"
    return write_evaluation(
        output,
        result.confusion.numpy(),
        source.classes,
        loss=result.loss,
        top1=result.top1,
        top5=result.top5,
        count=result.count,
    ) | {"output": str(output)}
