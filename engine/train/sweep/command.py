"""`launch/sweep.py`: ranges over a run's fields, or folds of its images, or both."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from engine.config import ConfigError, RunConfig, require
from engine.config import parse as parse_run
from engine.runs.door import writing
from engine.runs.output import refuse_folder
from engine.train.sweep.space import Range, read_space, with_fields
from engine.train.sweep.trial import claim


@dataclass(frozen=True)
class SweepConfig:
    """What is searched, and how much of it."""

    space: dict[str, Range]
    base: RunConfig
    """Every trial's description, less what is drawn."""
    folder: Path
    trials: int
    folds: int
    """Of a cross-validation of each trial; 0 is none."""


def parse(arguments: Sequence[str] | None = None) -> SweepConfig:
    """The sweep that is asked for; flags that are not its own are launch/train.py's.

    Raises ConfigError for ranges that cannot be meant, with file and line, before anything is made.
    """
    parser = argparse.ArgumentParser(
        usage="sweep.py [RANGES.yaml] [--trials N] [--folds N] [--output FOLDER] [launch/train.py's flags]",
        description="Train with values from RANGES.yaml (as `optim.lr: {log: [1e-4, 1e-1]}`), on folds, or both, and "
        "compare. Every other flag is launch/train.py's.",
        allow_abbrev=False,
    )
    parser.add_argument("--trials", type=int, help="runs in all; those that are finished count (default: 20)")
    parser.add_argument("--folds", type=int, default=0, help="cross-validate each trial on so many parts of all images")
    parser.add_argument("--output", type=Path, help="folder of the sweep; one that was stopped goes on (default: new)")
    told = list(sys.argv[1:] if arguments is None else arguments)
    ranges = Path(told.pop(0)) if told and not told[0].startswith("-") else None
    given, rest = parser.parse_known_args(told)
    base = parse_run(rest)
    require(base.resume is None, "--resume is a run's; a sweep goes on where its --output is given again")
    require(ranges is not None or given.folds > 0, "a sweep needs a YAML of ranges, or --folds, or both")
    require(given.trials is None or given.trials >= 1, f"--trials must be at least 1, not {given.trials}")
    space = read_space(ranges, base) if ranges is not None else {}
    require(bool(space) or given.trials in (None, 1), "--trials without ranges would repeat one run; leave it out")
    base = replace(base, log=replace(base.log, output=None, plots=False))
    with_fields(base, {"data.folds": given.folds})
    name = ranges.stem if ranges is not None else f"{given.folds}-folds"
    folder = given.output or Path("runs") / f"sweep-{name}-{datetime.now():%Y%m%d-%H%M%S}"
    return SweepConfig(space, base, folder, (given.trials or 20) if space else 1, given.folds)


def run_sweep(asked: SweepConfig) -> int:
    """Run what is left of the sweep, report all of it; returns the exit code: 1 where no trial finished, 130 stopped.

    Raises ConfigError for a folder that is another sweep's or in use, and where optuna is not installed.
    """
    try:
        from engine.train.sweep.report import PAGE, write_report
        from engine.train.sweep.search import database_in_words, open_study, remember, search
    except ModuleNotFoundError as error:
        raise ConfigError(f"a sweep needs {error.name}: pip install {error.name}") from None
    refuse_folder(asked.folder)
    with writing(asked.folder):
        asked.folder.mkdir(parents=True, exist_ok=True)
    lock = claim(asked.folder)
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        remember(asked.folder, asked.space, asked.base, asked.folds)
        with database_in_words(asked.folder):
            study, code = open_study(asked.folder), 0
            try:
                search(study, asked.space, asked.base, asked.folder, asked.trials, asked.folds)
            except KeyboardInterrupt:
                code = 130
            trials = study.get_trials(deepcopy=False)
        print(write_report(trials, asked.space, asked.folder, asked.folds))
        print(f"report {asked.folder / PAGE}")
        if code:
            print(f"stopped; the same command with --output {asked.folder} goes on")
        return code or int(not any(trial.state.name == "COMPLETE" for trial in trials))
    finally:
        signal.signal(signal.SIGTERM, before)
        os.close(lock)


def _stop(number: int, frame: Any) -> None:
    raise KeyboardInterrupt
