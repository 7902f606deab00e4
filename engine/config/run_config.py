"""What a run is: frozen dataclasses, a file a group, in a YAML file and out of it.

Every knob is one field: its default, its meaning and its check have no second place. A YAML file mirrors the groups
(`optim: {lr: 0.1}`); on the command line the common knobs stand alone (`--lr 0.1`) and the others carry their group
(`--data.on-bad-image error`). Flags win over the file.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from engine.config.augment import AugmentConfig
from engine.config.checks import ConfigError, require
from engine.config.data import DataConfig
from engine.config.distill import DistillConfig
from engine.config.flag import Augment, Distill, TopLevel
from engine.config.log import LogConfig
from engine.config.memory import MemoryConfig
from engine.config.model import ModelConfig
from engine.config.optim import OptimConfig
from engine.config.parallel import ParallelConfig
from engine.config.precision import PrecisionConfig
from engine.config.reading.numbers import refuse_absurd
from engine.config.reading.yaml_text import as_meant, read_yaml
from engine.config.recipe import recipe_file
from engine.config.stop import StopConfig


@dataclass(frozen=True)
class RunConfig:
    """One training run. Written to the run folder in full, it is by itself enough to repeat the run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    stop: StopConfig = field(default_factory=StopConfig)
    log: LogConfig = field(default_factory=LogConfig)
    recipe: str | None = None
    """Recipe under configs/recipes/ that the other fields began with, as resnet18/paper; flags win over it."""
    seed: int = 0
    """Seed of the weights, the order of the images and their augmentation."""
    config: Path | None = None
    """YAML file with any of these fields, in their groups; flags win over it."""
    resume: str | None = None
    """Run folder or checkpoint to go on with; alone, `--resume` is the folder of --output, or the newest in runs/. auto
    is the same, and begins a run where there is none."""

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**63, f"--seed must be in [0, 2^63), not {self.seed}")
        refuse_absurd(self, flags())
        off, epochs = self.augment.mix_off_epochs, self.optim.epochs
        self.stop.refuse(epochs, self.optim.ema)
        self.distill.refuse(self.optim.sam)
        require(off < epochs, f"--augment.mix-off-epochs {off}: of {epochs} epochs none would have mixtures")
        require(
            not self.optim.logit_adjust or self.data.balance == "none",
            f"--optim.logit-adjust and --data.balance {self.data.balance} make up for the same thing twice; keep one",
        )
        require(
            self.data.bits != 16 or not self.augment.chooses_operators,
            f"--data.bits 16 takes crops, mirror images, erasing, mixup and CutMix; {self.augment.describe()} changes "
            "images of 8 bits: --data.bits 8, or leave it out",
        )
        require(
            self.data.bits != 16 or self.data.cache in ("off", "auto"),
            f"--data.cache {self.data.cache} keeps 8 bits a colour: --data.bits 8, or --data.cache off",
        )
        require(
            self.augment.repeats == 1 or self.data.balance != "sampler",
            "--augment.repeats and --data.balance sampler each choose the images of an epoch; keep one",
        )
        require(
            self.augment.repeats <= self.optim.batch_size,
            f"--augment.repeats {self.augment.repeats} does not fit into a batch of {self.optim.batch_size} images",
        )
        fixed = self.augment.resolved["crop"] == "fixed"
        require(
            not (fixed and self.data.crop_scale), "--data.crop-scale has no effect on --augment.crop fixed (or seed)"
        )


def changed_yaml(config: RunConfig) -> str:
    """The fields that differ from their defaults, as YAML in their groups; where the run is written is left out."""
    tree: dict[str, Any] = {}
    usual = dict(flatten(_plain(dataclasses.asdict(RunConfig()))))
    for name, value in flatten(_plain(dataclasses.asdict(config))):
        if value != usual[name] and name not in ("config", "resume", "recipe", "log.output"):
            group, _, leaf = name.rpartition(".")
            (tree.setdefault(group, {}) if group else tree)[leaf] = value
    return yaml.safe_dump(tree, sort_keys=False)


WHOLE = re.compile(r"^# all (\d+) fields$", re.MULTILINE)
"""The last line of a description that `to_yaml` wrote."""
LAST = "seed"
"""The field that stands last in a file."""


def flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) for every leaf of nested dictionaries."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@cache
def flags() -> dict[str, str]:
    """How each field is called on the command line, by its dotted name in a YAML file: `optim.lr` is `--lr`."""
    found = {}
    for group, kind in get_type_hints(RunConfig, include_extras=True).items():
        if not dataclasses.is_dataclass(kind):
            found[group] = f"--{group}"
            continue
        for name, hint in get_type_hints(kind, include_extras=True).items():
            marks = getattr(hint, "__metadata__", ())
            of_group = any(mark is Augment or mark is Distill for mark in marks)
            alone = of_group or any(mark is TopLevel for mark in marks)
            leaf = group if of_group else name.replace("_", "-")
            found[f"{group}.{name}"] = f"--{leaf}" if alone else f"--{group}.{leaf}"
    return found


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


def refuse_cut(text: str, tree: dict[str, Any], origin: str) -> None:
    """Raise ConfigError unless a run folder's file is all there: every field and its last line.

    What a version of this project wrote that knew fewer fields is whole, too: its last line counts them, or, before
    there was such a line, is LAST, behind all others.
    """
    found = {name for name, _ in flatten(tree)}
    marks, ended = WHOLE.findall(text), text.endswith("\n")
    if ended and (int(marks[-1]) == len(found) if marks else LAST in found):
        return
    missing = sorted(set(field_names()) - {"config", "resume"} - found)
    what = f"{', '.join(missing[:6])}{' …' if len(missing) > 6 else ''} missing" if missing else "its end is missing"
    raise ConfigError(
        f"{origin}: the run's description was cut or edited ({what}); write it with all fields, or start a new run"
    )


def from_yaml(path: Path, whole: bool = False) -> RunConfig:
    """Read a run description; fields that the file does not name keep their defaults.

    whole  it is a run folder's own and has to have all of them

    Raises ConfigError for a missing file, text that is not YAML, an unknown key (with the nearest names), or a
    value of the wrong type or out of range.
    """
    text, tree = read_yaml(path, f"--config {path}")
    refuse_unknown(tree, f"--config {path}")
    if whole:
        refuse_cut(text, tree, str(path))
    if tree.get("recipe") and not WHOLE.search(text):  # a run's own has the recipe's fields already
        tree = over_recipe(tree)
    return from_tree(tree, f"--config {path}")


def from_tree(tree: dict[str, Any], origin: str) -> RunConfig:
    """The description that known fields in their groups make. Raises ConfigError, which begins with `origin`."""
    import pydantic

    try:
        return _reader().validate_python(as_meant(RunConfig, tree))
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}") from None
    except pydantic.ValidationError as error:
        lines = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}".removeprefix(": ") for item in error.errors()]
        raise ConfigError(f"{origin}: " + "; ".join(lines)) from None


@cache
def _reader() -> Any:
    """pydantic's, which takes a quarter of a second to make."""
    import pydantic

    return pydantic.TypeAdapter(RunConfig)


def over_recipe(tree: dict[str, Any]) -> dict[str, Any]:
    """The fields of `tree` over those of the recipe that it names. Raises ConfigError where there is none."""
    path = recipe_file(str(tree["recipe"]))
    _, below = read_yaml(path, f"--config {path}")
    refuse_unknown(below, f"--config {path}")
    groups = {name: {**value, **(tree.get(name) or {})} for name, value in below.items() if isinstance(value, dict)}
    return {**below, **tree, **groups}


def to_yaml(config: RunConfig) -> str:
    """The whole description as YAML; `from_yaml` of it gives an equal RunConfig (less `config` and `resume`)."""

    tree = _plain(dataclasses.asdict(config))
    del tree["config"], tree["resume"]
    return yaml.safe_dump(tree, sort_keys=False) + f"# all {sum(1 for _ in flatten(tree))} fields\n"


def _plain(value: Any) -> Any:
    """As YAML writes it."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value
