"""What a run is: frozen dataclasses, read from a YAML file and the command line.

Every knob is one field here: its default, its meaning and its check have no second place. A YAML file
mirrors the groups (`optim: {lr: 0.1}`); on the command line the common knobs stand alone (`--lr 0.1`)
and the others carry their group (`--data.on-bad-image error`). Flags win over the file.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml

from engine.byte_sizes import parse_bytes
from engine.flags import TopLevel, expand_short_flags, tyro, value_of


class ConfigError(ValueError):
    """A run description that cannot be meant; the message says which field and what would do."""


class RankError(ConfigError):
    """A mistake that one process alone sees, so that process tells it."""


def require(condition: bool, message: str) -> None:
    """Raise ConfigError with `message` unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True)
class ModelConfig:
    """Which network, and how it is laid out."""

    arch: Annotated[str, TopLevel] = "resnext50"
    """Network name; `resnext` is resnext50."""
    compile: Annotated[Literal["auto", "on", "off"], TopLevel] = "auto"
    """torch.compile: auto is on with a GPU and off without. `--compile` and `--no-compile` work too."""
    pretrained: Annotated[str | None, TopLevel] = None
    """Start from these weights: a file, timm:NAME or torchvision:NAME; a head for other classes starts anew."""
    width: Annotated[float, TopLevel] = 1.0
    """Width multiplier of all channels, for networks that have one (the MobileNets, ShuffleNets)."""
    dropout: float | None = None
    """Dropout before the last layer, for networks that have one; none is the network's own."""
    drop_path: float | None = None
    """Largest rate of dropped residual branches, for networks that have one; none is the network's own."""
    fused: Annotated[Literal["auto", "on", "off"], TopLevel] = "auto"
    """Layers through the fused operators in kernels/, with one raw tensor kept a convolution: auto is on for a GPU on
    which they were measured, on takes them anywhere (their plain twins on a CPU)."""
    channels_last: bool = True
    """Keep images and weights as [N, H, W, C] in memory: faster convolutions on GPUs and on CPUs."""

    def __post_init__(self) -> None:
        require(self.width > 0, f"--width must be above 0, not {self.width}")
        for name, rate in (("dropout", self.dropout), ("drop-path", self.drop_path)):
            require(rate is None or 0 <= rate < 1, f"--model.{name} must be in [0, 1), not {rate}")

    def options(self) -> dict[str, float]:
        """What `archs.build` is told beside the name: the options that were asked for."""
        asked = {"width": self.width, "dropout": self.dropout, "drop_path": self.drop_path}
        return {name: value for name, value in asked.items() if value is not None and (name, value) != ("width", 1.0)}


@dataclass(frozen=True)
class DataConfig:
    """Which images, and how they reach the device."""

    name: Literal["auto", "digits", "mnist", "cifar10", "folder"] = "auto"
    """Source of images; auto is `folder` where a root is given and `digits` where none is."""
    root: Path | None = None
    """Folder of the data: train/ and val/ for `folder`, torchvision's layout for mnist and cifar10."""
    image_size: Annotated[int, TopLevel] = 224
    """Height and width of the images that the network sees, in pixels."""
    progressive_from: int = 0
    """Size in pixels of the first training images, which grow to image_size over the run; 0 is no growth."""
    progressive_stages: int = 4
    """Sizes that growing images pass through, the first and the last included."""
    on_bad_image: Literal["skip", "error"] = "skip"
    """An image that does not decode is reported by path, then skipped or refused."""
    backend: Literal["auto", "dali", "torchvision"] = "auto"
    """Who decodes; auto is DALI where it has a wheel."""
    workers: int = 0
    """Decoding threads (DALI) or processes (torchvision); 0 is one a core, at most 8."""
    prefetch: int = 2
    """Batches prepared ahead."""
    flip: Literal["auto", "on", "off"] = "auto"
    """Random horizontal flip in training; auto is on for photographs and off for digits."""
    crop_scale: tuple[float, float] | None = None
    """Smallest and largest share of the area that a training crop keeps; none is the source's own."""
    limit: int = 0
    """Train on this many images only, a seeded random choice; 0 is all."""
    download: bool = True
    """Let mnist and cifar10 be downloaded where they are missing."""

    def __post_init__(self) -> None:
        require(self.image_size >= 8, f"--image-size must be at least 8 pixels, not {self.image_size}")
        require(
            self.progressive_from == 0 or 8 <= self.progressive_from <= self.image_size,
            f"--data.progressive-from must be 0 (no growth) or from 8 to the image size of {self.image_size} pixels, "
            f"not {self.progressive_from}",
        )
        require(
            self.progressive_stages >= 2,
            f"--data.progressive-stages must be at least 2, not {self.progressive_stages}",
        )
        require(self.workers >= 0, f"--data.workers must be 0 (one a core) or more, not {self.workers}")
        require(self.prefetch >= 1, f"--data.prefetch must be at least 1 batch, not {self.prefetch}")
        require(self.limit >= 0, f"--data.limit must be 0 (all images) or more, not {self.limit}")
        if self.crop_scale is not None:
            low, high = self.crop_scale
            require(0 < low <= high <= 1, f"--data.crop-scale needs 0 < MIN <= MAX <= 1, not {low} {high}")


@dataclass(frozen=True)
class OptimConfig:
    """What is minimised, and how."""

    epochs: Annotated[int, TopLevel] = 10
    """Passes over the training images."""
    batch_size: Annotated[int, TopLevel] = 128
    """Images a step over all GPUs together (the global batch)."""
    lr: Annotated[float, TopLevel] = 0.001
    """Peak learning rate."""
    optimizer: Annotated[Literal["sgd", "adam", "adamw"], TopLevel] = "adam"
    """SGD with Nesterov momentum, Adam, or AdamW."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 0.0
    """Weight decay of the weights; biases and normalisation parameters have none."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after the warm-up: constant, or a half cosine down to zero."""
    warmup_epochs: float = 0.0
    """Epochs over which the learning rate rises linearly from zero."""
    label_smoothing: float = 0.0
    """Share of the target spread over all classes (Szegedy et al. 2015, arXiv:1512.00567, section 7)."""
    clip_norm: float = 0.0
    """Largest global gradient norm; 0 is no clipping."""
    ema: float = 0.0
    """Decay of a moving average of the weights, as 0.9999, which is what is evaluated and kept; 0 is none."""
    sam: float = 0.0
    """Radius of sharpness-aware minimisation, as 0.05 (Foret et al. 2020, arXiv:2010.01412): the gradient is taken that
    far up the slope, in a second pass a step; 0 is off."""

    def __post_init__(self) -> None:
        require(self.epochs >= 1, f"--epochs must be at least 1, not {self.epochs}")
        require(self.batch_size >= 1, f"--batch-size must be at least 1 image, not {self.batch_size}")
        require(self.lr > 0, f"--lr must be above 0, not {self.lr}")
        require(0 <= self.momentum < 1, f"--optim.momentum must be in [0, 1), not {self.momentum}")
        require(self.weight_decay >= 0, f"--optim.weight-decay must be 0 or more, not {self.weight_decay}")
        require(self.warmup_epochs >= 0, f"--optim.warmup-epochs must be 0 or more, not {self.warmup_epochs}")
        require(0 <= self.label_smoothing < 1, f"--optim.label-smoothing must be in [0, 1), not {self.label_smoothing}")
        require(self.clip_norm >= 0, f"--optim.clip-norm must be 0 (off) or more, not {self.clip_norm}")
        require(0 <= self.ema < 1, f"--optim.ema must be 0 (off) or a decay between 0 and 1, not {self.ema}")
        require(0 <= self.sam < math.inf, f"--optim.sam must be 0 (off) or a radius above 0, not {self.sam}")

    def refuse_deepspeed(self, zero_stage: int) -> None:
        """Raise ConfigError for what no launch by DeepSpeed, or none at that ZeRO stage, can do."""
        require(
            not self.sam,
            "--optim.sam does not run under DeepSpeed, whose engine updates the weights by itself after a backward "
            "pass and leaves no place for the second one; launch without it",
        )
        require(not (self.ema and zero_stage == 3), "--optim.ema needs whole parameters on a GPU; use ZeRO-2")


@dataclass(frozen=True)
class PrecisionConfig:
    """Numbers."""

    precision: Annotated[Literal["auto", "fp32", "bf16", "fp16"], TopLevel] = "auto"
    """Compute dtype under autocast (parameters stay fp32); auto is bf16 where the chip has it, fp16 with loss
    scaling on Volta and Turing, else fp32."""


@dataclass(frozen=True)
class MemoryConfig:
    """What is kept for the backward pass, and in how much memory."""

    recompute: Annotated[Literal["auto", "none", "block", "segments", "nested"], TopLevel] = "auto"
    """Run forward passes again in the backward pass: block by block, in the best runs of blocks (segments), or nested,
    the layers within those once more. auto is the cheapest that fits the GPU's memory, and none without a GPU."""
    gpu_memory: Annotated[str, TopLevel] = "auto"
    """Device memory to plan for, as in 8GiB; auto is what is free on the GPU, off plans nothing."""
    offload: Literal["auto", "on", "off"] = "auto"
    """Keep saved activations in pinned host memory; auto is where nothing else fits."""

    def __post_init__(self) -> None:
        if self.gpu_memory not in ("auto", "off"):
            try:
                parse_bytes(self.gpu_memory)
            except ValueError as error:
                raise ConfigError(f"--gpu-memory {error}") from None


@dataclass(frozen=True)
class ParallelConfig:
    """How a global batch is spread."""

    micro_batch_size: int = 0
    """Images a GPU takes at once; the rest of its share is accumulated. 0 is the whole share. BatchNorm sees one
    micro-batch at a time, so this changes what such a network computes."""

    sync_bn: Annotated[bool, TopLevel] = False
    """BatchNorm over the images of all ranks together, not each rank's own."""

    threads: int = 0
    """CPU threads of a process without a GPU; 0 is OMP_NUM_THREADS, or this machine's cores shared out."""

    def __post_init__(self) -> None:
        require(self.threads >= 0, f"--parallel.threads must be 0 (all cores) or more, not {self.threads}")
        require(
            self.micro_batch_size >= 0, f"--parallel.micro-batch-size must be 0 or more, not {self.micro_batch_size}"
        )


@dataclass(frozen=True)
class LogConfig:
    """What a run leaves behind."""

    output: Annotated[Path | None, TopLevel] = None
    """Run folder; none is a new one, runs/ARCH-DATA-DATE-TIME."""
    every: int = 10
    """Steps between two rows of metrics.jsonl; the only steps at which the host waits for the device."""
    checkpoint_steps: int = 0
    """Steps between two checkpoints within an epoch; 0 is none. There is one after every epoch in any case."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept on disk; 0 is all."""
    save_best: bool = True
    """model.safetensors holds the weights with the best test accuracy; off: those of the last epoch."""
    plots: bool = True
    """Draw plots and the report page at the end."""
    profile: Annotated[bool, TopLevel] = False
    """Record ten steps with torch's profiler and say where they go; the trace is in the run folder."""
    monitor_interval: float = 1.0
    """Seconds between two rows of monitor.jsonl; 0 is no monitor."""

    def __post_init__(self) -> None:
        require(self.every >= 1, f"--log.every must be at least 1 step, not {self.every}")
        require(self.checkpoint_steps >= 0, f"--log.checkpoint-steps must be 0 or more, not {self.checkpoint_steps}")
        require(
            self.keep_checkpoints >= 0, f"--log.keep-checkpoints must be 0 (all) or more, not {self.keep_checkpoints}"
        )
        require(
            self.monitor_interval >= 0, f"--log.monitor-interval must be 0 (off) or more, not {self.monitor_interval}"
        )


@dataclass(frozen=True)
class RunConfig:
    """One training run. Written to the run folder in full, it is by itself enough to repeat the run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    log: LogConfig = field(default_factory=LogConfig)
    seed: int = 0
    """Seed of the weights, the order of the images and their augmentation."""
    config: Path | None = None
    """YAML file with any of these fields, in their groups; flags win over it."""
    resume: str | None = None
    """Run folder or checkpoint to go on with; alone, `--resume` is the folder of --output, or the newest in runs/."""

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**63, f"--seed must be in [0, 2^63), not {self.seed}")


def flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) for every leaf of nested dictionaries."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def field_names() -> list[str]:
    """Every field of RunConfig by its dotted name in a YAML file."""
    return [name for name, _ in flatten(dataclasses.asdict(RunConfig()))]


def refuse_unknown(tree: dict[str, Any], origin: str) -> None:
    """Raise ConfigError naming each unknown key of a YAML tree and the names nearest to it."""
    known = field_names()
    groups = {name.partition(".")[0] for name in known if "." in name}
    by_leaf = {name.rpartition(".")[2]: name for name in known}
    problems = [
        f"{key} is a group of fields, not a value" for key in groups & tree.keys() if not isinstance(tree[key], dict)
    ]
    for name, _ in flatten(tree):
        if name in known or name in groups:
            continue
        leaf = name.rpartition(".")[2]
        near = [by_leaf[other] for other in difflib.get_close_matches(leaf, by_leaf, n=3, cutoff=0.6)]
        near = near or difflib.get_close_matches(name, known, n=3, cutoff=0.6)
        problems.append(f"unknown key {name}" + (f"; did you mean {' or '.join(near)}?" if near else ""))
    require(not problems, f"{origin}: " + "; ".join(problems))


def from_yaml(path: Path) -> RunConfig:
    """Read a run description; fields that the file does not name keep their defaults.

    Raises ConfigError for a missing file, text that is not YAML, an unknown key (with the nearest names), or a
    value of the wrong type or out of range.
    """
    import pydantic

    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        near = sorted(str(other) for other in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise ConfigError(
            f"--config {path}: no such file" + (f"; there is {', '.join(near)}" if near else "")
        ) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"--config {path}: cannot be read as YAML: {error}") from None
    require(isinstance(tree, dict), f"--config {path}: expected fields and values, found {type(tree).__name__}")
    refuse_unknown(tree, f"--config {path}")
    try:
        return pydantic.TypeAdapter(RunConfig).validate_python(tree)
    except pydantic.ValidationError as error:
        lines = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}".removeprefix(": ") for item in error.errors()]
        raise ConfigError(f"--config {path}: " + "; ".join(lines)) from None


def to_yaml(config: RunConfig) -> str:
    """The whole description as YAML; `from_yaml` of it gives an equal RunConfig (less `config` and `resume`)."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, Path):
            return str(value)
        return list(value) if isinstance(value, tuple) else value

    tree = plain(dataclasses.asdict(config))
    del tree["config"], tree["resume"]
    return yaml.safe_dump(tree, sort_keys=False)


def find_run(resume: str, output: str | None = None, runs: Path = Path("runs")) -> Path:
    """The run folder that `--resume` means: a run folder, a checkpoint in one, or `auto` (--output's, else the newest).

    Raises ConfigError where there is no run to go on with.
    """
    if resume == "auto" and output is not None:
        resume = output
    if resume == "auto":
        found = sorted(runs.glob("*/config.yaml"), key=lambda path: path.stat().st_mtime)
        require(bool(found), f"--resume: no run in {runs.resolve()}; name its folder: --resume FOLDER")
        return found[-1].parent
    path = Path(resume)
    for folder in (path, *path.parents):
        if (folder / "config.yaml").is_file():
            return folder
    known = ", ".join(sorted(str(run.parent) for run in runs.glob("*/config.yaml"))) or "none"
    raise ConfigError(f"--resume {resume}: no config.yaml there or above it; runs in {runs}: {known}")


def command_line(kind: type[Any], arguments: Sequence[str] | None, description: str, **more: Any) -> Any:
    """The `kind` that `arguments` (default: the command line) describe; `more` is for tyro, which reads them.

    Raises ConfigError where tyro is not installed.
    """
    require(tyro is not None, "the command line needs tyro: pip install tyro, or `make train`, which installs it")
    return tyro.cli(kind, args=arguments, description=description, **more)


def parse(arguments: Sequence[str] | None = None) -> RunConfig:
    """The run described by `arguments` (default: the command line) over --config's file, or over the run to resume.

    Prints help or a usage error and exits as argparse does (status 0 and 2); raises ConfigError for a value that
    has the right type but makes no sense, and as `command_line`.
    """
    given = expand_short_flags(sys.argv[1:] if arguments is None else arguments)
    base = None
    path = value_of("--config", given)
    run = value_of("--resume", given)
    if path is not None:
        base = from_yaml(Path(path))
    elif run is not None:
        base = from_yaml(find_run(run, value_of("--output", given)) / "config.yaml")
    return command_line(RunConfig, given, DESCRIPTION, default=base or RunConfig())


DESCRIPTION = """Train an image classifier.

Without --data.name or --data.root it trains on scikit-learn's handwritten digits, which need no download.
`--list-archs` shows the networks.
Several GPUs: put `accelerate launch` in front. Your own pictures: --data.root FOLDER with train/ and val/."""
