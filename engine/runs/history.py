"""A run folder read back: what was asked, what was planned, what happened.

metrics.jsonl is one timeline of {"kind": "step" | "epoch" | "event", ...} rows, written by one session or several.
A session that goes on from a checkpoint repeats the steps that a kill took; the later row is the one that counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from engine.config import ConfigError, RunConfig
from engine.config.reading import yaml_text
from engine.runs.monitor_summary import summarise
from engine.runs.records import read_records

Row = dict[str, Any]

ASIDE = ("bad_image", "memory")
"""Events that say nothing of how a run ended."""
STATES = {
    "finished": "finished",
    "interrupted": "interrupted",
    "nan": "stopped: loss not finite",
    "memory_exhausted": "stopped: out of memory",
}


NUMBERS = ("step", "epoch", "time", "loss", "accuracy", "lr", "seconds", "interval", "gpu_utilization")
NUMBERS_END = ("_loss", "_accuracy", "_top5", "_images", "_seconds", "_per_second", "_fraction", "_bytes", "_size")
NUMBERS_END += ("_percent", "_watts", "_celsius", "_mhz")
"""Fields of a row that are numbers, and how the names of others end."""
PLAN = {"global_batch_size": 1, "micro_batch_size": 1, "accumulation": 1, "ranks": 1, "zero_stage": 0}
"""Fields of plan.json that are counted with."""
OLD, NEW = "test_", "val_"
MOST = 1e15
"""What is larger than any figure of a run."""


class NotARun(ValueError):
    """A folder that holds no run; the message says what was looked for and where."""


@dataclass(frozen=True)
class History:
    """One run. Rows are those that count, in the order of their steps; accuracies are shares, 0..1."""

    folder: Path
    config: dict[str, Any] = field(default_factory=dict)
    """config.yaml as nested dictionaries; empty where it is missing."""
    plan: dict[str, Any] = field(default_factory=dict)
    """plan.json; empty where it is missing."""
    steps: list[Row] = field(default_factory=list)
    epochs: list[Row] = field(default_factory=list)
    events: list[Row] = field(default_factory=list)
    """Every event of every session, in the order of the file."""
    test: Row | None = None
    """What the kept weights reached on the test split; None where there is none, or training has not ended."""
    monitor: list[Row] = field(default_factory=list)
    """Rows of monitor.jsonl, as engine/monitor/monitor.py describes them."""
    seconds: float = 0.0
    """Time in training, pauses between sessions left out."""

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.folder.resolve().name

    @property
    def arch(self) -> str:
        """The network that was asked for; empty where there is no config."""
        return str(self.config.get("model", {}).get("arch") or "")

    @property
    def data(self) -> str:
        """The source of images that was asked for."""
        return str(self.config.get("data", {}).get("name") or "")

    @property
    def epochs_asked(self) -> int | None:
        """Epochs in the config."""
        return self.config.get("optim", {}).get("epochs")

    @property
    def state(self) -> str:
        """`finished`, `interrupted`, `stopped: ` and why, or `unfinished`: running, or killed without a word."""
        last = next((row["event"] for row in reversed(self.events) if row.get("event") not in ASIDE), None)
        return STATES.get(str(last), "unfinished")

    @property
    def best(self) -> Row | None:
        """The first epoch of the highest val accuracy; by another --best, that whose weights are kept."""
        if self.config.get("log", {}).get("best", "accuracy") != "accuracy":
            return next((row for row in reversed(self.epochs) if row.get("best")), None)
        judged = [row for row in self.epochs if row.get("val_accuracy") is not None]
        return max(judged, key=lambda row: row["val_accuracy"], default=None)

    @property
    def bad_images(self) -> list[Row]:
        """One event a path: images that did not decode."""
        found = [row for row in self.events if row.get("event") == "bad_image"]
        return list({str(row.get("path")): row for row in found}.values())

    @property
    def resumed_at(self) -> list[float]:
        """Where sessions after the first began, in epochs."""
        steps = [row["step"] for row in self.events if row.get("event") == "resume" and row.get("step") is not None]
        known = sorted({(row["step"], float(row["epoch"])) for row in [*self.steps, *self.epochs]})
        if not known:
            return []
        at, epochs = zip(*known, strict=True)
        return [float(value) for value in np.interp(steps, (0, *at), (0.0, *epochs))]

    @cached_property
    def summary(self) -> dict[str, Any]:
        """`summarise` of the monitor's rows."""
        return summarise(self.monitor)

    @cached_property
    def images_per_second(self) -> float | None:
        """Median over the logged steps, the first left out (it holds start-up and compilation); else over epochs."""
        speeds = column(self.steps[1:], "images_per_second")
        if not np.isfinite(speeds).any():
            speeds = column(self.epochs or self.steps, "images_per_second")
        return float(np.nanmedian(speeds)) if np.isfinite(speeds).any() else None

    @cached_property
    def peak_memory_bytes(self) -> int | None:
        """Of the training process: the monitor's figure, else the largest among the logged steps."""
        if (peak := self.summary["peak_memory_bytes"]) is not None:
            return int(peak)
        logged = [row["memory_bytes"] for row in self.steps if row.get("memory_bytes")]
        return max(logged, default=None)


def read_history(folder: Path) -> History:
    """Read the run in `folder`, finished or not.

    Raises NotARun where neither config.yaml nor metrics.jsonl is there.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise NotARun(f"{folder}: no such folder")
    if not any((folder / name).is_file() for name in ("config.yaml", "metrics.jsonl")):
        inside = sorted(path.parent.name for path in folder.glob("*/config.yaml"))
        hint = f"; runs inside it: {', '.join(inside)}" if inside else ""
        raise NotARun(f"{folder} is not a run folder: neither config.yaml nor metrics.jsonl is there{hint}")
    rows = [checked(under_todays_names(row)) for row in read_records(folder / "metrics.jsonl")]
    steps, epochs, events = timeline(rows)
    return History(
        folder=folder,
        config=like(read_yaml(folder / "config.yaml"), asdict(RunConfig())),
        plan=like(read_json(folder / "plan.json"), PLAN),
        steps=steps,
        epochs=epochs,
        events=events,
        test=standing_test(rows),
        monitor=[checked(row) for row in read_records(folder / "monitor.jsonl")],
        seconds=time_in_training(rows),
    )


def under_todays_names(row: Row) -> Row:
    """An epoch's row as it is written today: runs of before called what was measured on val/ `test_…`."""
    if row.get("kind") != "epoch" or not any(key.startswith(OLD) for key in row):
        return row
    return {NEW + key.removeprefix(OLD) if key.startswith(OLD) else key: value for key, value in row.items()}


def checked(row: Row) -> Row:
    """The row with nothing where a number or a word is meant and something else stands: a file can be edited."""
    return {key: value if _is_meant(key, value) else None for key, value in row.items()}


def like(tree: dict[Any, Any], known: dict[str, Any]) -> dict[str, Any]:
    """The tree without what is no group, number or word where `known` has one: a file can be edited."""
    meant = {}
    for key, value in tree.items():
        usual = known.get(key)
        if isinstance(usual, dict):
            if isinstance(value, dict):
                meant[key] = like(value, usual)
        elif isinstance(usual, int | float) and not isinstance(usual, bool):
            if isinstance(value, int | float) and abs(value) < MOST:
                meant[key] = value
        elif not isinstance(usual, str) or isinstance(value, str):
            meant[str(key)] = value
    return meant


def _is_meant(key: str, value: Any) -> bool:
    if key in ("kind", "event"):
        return isinstance(value, str)
    if key in NUMBERS or key.endswith(NUMBERS_END):
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MOST
    return True


def timeline(rows: Iterable[Row]) -> tuple[list[Row], list[Row], list[Row]]:
    """(steps, epochs, events) that count: a row at a step takes back what an earlier session wrote from there on."""
    steps: list[Row] = []
    epochs: list[Row] = []
    events: list[Row] = []
    for row in rows:
        kind, step = row.get("kind"), row.get("step")
        if kind == "event":
            events.append(row)
            if row.get("event") in ("start", "resume") and step is not None:
                steps = [old for old in steps if old["step"] <= step]
                epochs = [old for old in epochs if old["step"] <= step]
        elif kind == "step" and step is not None and row.get("epoch") is not None:
            while steps and steps[-1]["step"] >= step:
                steps.pop()
            while epochs and epochs[-1]["step"] > step:
                epochs.pop()
            steps.append(row)
        elif kind == "epoch" and step is not None and row.get("epoch") is not None:
            while epochs and (epochs[-1]["step"] >= step or epochs[-1]["epoch"] >= row["epoch"]):
                epochs.pop()
            while steps and steps[-1]["step"] > step:
                steps.pop()
            epochs.append(row)
    return steps, epochs, events


def standing_test(rows: Iterable[Row]) -> Row | None:
    """What the weights that a run keeps now reached on the test split; None where it went on since, or went back."""
    found = None
    for row in rows:
        kind, step = row.get("kind"), row.get("step")
        if kind == "test":
            found = row
        elif found is not None and step is not None and found.get("step") is not None:
            back = row.get("event") in ("start", "resume") and step < found["step"]
            if back or (kind == "step" and step > found["step"]):
                found = None
    return found


def time_in_training(rows: Iterable[Row]) -> float:
    """Seconds from each session's first row to its last, over all rows of metrics.jsonl in the order of the file."""
    total, before = 0.0, None
    for row in rows:
        now = row.get("time")
        if now is None:
            continue
        if before is not None and row.get("event") not in ("start", "resume"):
            total += max(0.0, now - before)
        before = now
    return total


def column(rows: Iterable[Row], key: str) -> np.ndarray:
    """float64 [N]: one value a row; NaN where a row has none."""
    return np.array([np.nan if row.get(key) is None else row[key] for row in rows], dtype=np.float64)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where the file is missing or torn."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping; empty where the file is missing or torn."""
    try:
        return yaml_text.read_yaml(path, str(path))[1]
    except ConfigError:
        return {}
