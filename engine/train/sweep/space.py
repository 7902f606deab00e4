"""A YAML of ranges over a run's fields, checked against the fields before anything runs.

optim.lr: {log: [1e-4, 1e-1]}          between both, evenly in the logarithm
optim.label_smoothing: {uniform: [0, 0.2]}
optim.batch_size: {int: [16, 64]}      whole numbers, both ends included
optim.optimizer: {choice: [sgd, adamw]}
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from engine.config import ConfigError, RunConfig, field_names, require
from engine.config.reading.yaml_text import read_yaml
from engine.config.run_config import from_tree

KINDS = ("log", "uniform", "int", "choice")
OWN = ("config", "resume", "recipe", "log.output", "data.folds", "data.fold", "seed")
"""Fields that a sweep sets itself, or that would make its trials incomparable."""


@dataclass(frozen=True)
class Range:
    """Values that one field may take."""

    kind: str
    values: tuple[Any, ...]
    """Lowest and highest, or the choices."""
    line: int
    """Of the file, from 1."""

    @property
    def between(self) -> tuple[float, ...]:
        """A value inside, which a field of whole numbers refuses though it may take both ends."""
        return (
            () if self.kind in ("int", "choice") else (self.values[0] + 0.381966 * (self.values[1] - self.values[0]),)
        )

    def drawn(self, trial: Any, field: str) -> Any:
        """A value for an optuna trial."""
        if self.kind == "choice":
            return trial.suggest_categorical(field, list(self.values))
        if self.kind == "int":
            return trial.suggest_int(field, *self.values)
        return trial.suggest_float(field, *self.values, log=self.kind == "log")


def read_space(path: Path, base: RunConfig) -> dict[str, Range]:
    """The ranges of a file by the dotted name of their field.

    Raises ConfigError, naming file and line, for a field that there is not, a range that cannot be meant, and an end
    or a choice that the field itself refuses beside the other fields of `base`.
    """
    text, tree = read_yaml(path, str(path))
    require(bool(tree), f"{path}: no range in it, as `optim.lr: {{log: [1e-4, 1e-1]}}`")
    lines = {key.value: key.start_mark.line + 1 for key, _ in yaml.compose(text).value}
    for field in tree:
        require(isinstance(field, str) and field in lines, f"{path}: {field!r} is no field of a run")
    space = {field: _range(field, told, f"{path}:{lines[field]}", lines) for field, told in tree.items()}
    for field, span in space.items():
        for value in (*span.values, *span.between):
            try:
                with_fields(base, {field: value})
            except ConfigError as error:
                raise ConfigError(f"{path}:{span.line}: {field} cannot be {value}: {error}") from None
    return space


def _range(field: str, told: Any, origin: str, lines: Mapping[str, int]) -> Range:
    known = field_names()
    if field not in known:
        leaves = {name.rpartition(".")[2]: name for name in known}
        near = difflib.get_close_matches(field, known, n=3, cutoff=0.6)
        near = near or [leaves[leaf] for leaf in difflib.get_close_matches(field.rpartition(".")[2], leaves, n=3)]
        raise ConfigError(f"{origin}: unknown field {field}" + (f"; did you mean {' or '.join(near)}?" if near else ""))
    require(field not in OWN, f"{origin}: {field} is the sweep's own; give it on the command line")
    usual = f"{origin}: {field} takes one of {{log|uniform|int: [LOWEST, HIGHEST]}} and {{choice: [ONE, ...]}}"
    require(isinstance(told, dict) and len(told) == 1 and next(iter(told)) in KINDS, usual)
    kind, values = next(iter(told.items()))
    require(isinstance(values, list) and bool(values), usual)
    if kind == "choice":
        plain = all(isinstance(value, str | int | float | bool | None) for value in values)
        require(plain, f"{origin}: {field}: a choice is a number, a word, true, false or null")
        return Range(kind, tuple(values), lines[field])
    numbers = [_number(value) for value in values]
    require(len(values) == 2 and None not in numbers, f"{usual}; found {values}")
    low, high = numbers
    require(low < high, f"{origin}: {field}: {values[0]} is not below {values[1]}")
    require(kind != "log" or low > 0, f"{origin}: {field}: a range in the logarithm begins above 0, not at {values[0]}")
    if kind == "int":
        require(low == int(low) and high == int(high), f"{origin}: {field}: whole numbers are needed, found {values}")
        return Range(kind, (int(low), int(high)), lines[field])
    return Range(kind, (low, high), lines[field])


def _number(value: Any) -> float | None:
    """YAML 1.1 takes 1e-4 for a word; here it is a number."""
    if isinstance(value, bool):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def with_fields(base: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """`base` with fields replaced, by their dotted names; raises ConfigError where they cannot be meant."""
    tree = dataclasses.asdict(base)
    for field, value in values.items():
        group, _, leaf = field.rpartition(".")
        (tree[group] if group else tree)[leaf] = value
    return from_tree(tree, ", ".join(values))
