"""The command line: flags over a YAML file, or over the run to resume."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.config.checks import require
from engine.config.flag import tyro
from engine.config.other_names import refuse_other_names
from engine.config.recipe import recipe_file
from engine.config.resume import find_run, has_run
from engine.config.run_config import RunConfig, flags, from_yaml

DESCRIPTION = """Train an image classifier.

Without --data.name or --data.root it trains on scikit-learn's handwritten digits, which need no download.
`--list-archs` shows the networks. `--find-lr` looks for a learning rate (`--find-lr 1e-6:10:100`: from, to, steps).
`--print-launch slurm --nodes 4` prints a launch file (slurm, slurm-accelerate, kubernetes, pytorchjob), with
`--gpus-per-node 8` and a run's flags.
Several GPUs: put `accelerate launch` in front. Your own pictures: --data.root FOLDER with train/ and val/."""


def command_line(kind: type[Any], arguments: Sequence[str] | None, description: str, **more: Any) -> Any:
    """The `kind` that `arguments` (default: the command line) describe; `more` is for tyro, which reads them.

    Raises ConfigError where tyro is not installed.
    """
    require(tyro is not None, "the command line needs tyro: pip install tyro, or `make train`, which installs it")
    return tyro.cli(kind, args=arguments, description=description, **more)


def parse(arguments: Sequence[str] | None = None, description: str = DESCRIPTION) -> RunConfig:
    """The run described by `arguments` (default: the command line) over --config's file, or over the run to resume.

    Prints help or a usage error and exits as argparse does (status 0 and 2); raises ConfigError for a value that
    has the right type but makes no sense, and as `command_line`.
    """
    given = go_on_or_start(expand_short_flags(sys.argv[1:] if arguments is None else arguments))
    refuse_other_names(given, {*flags().values(), "--help", "--list-archs", "--no-compile"})
    base = None
    path = value_of("--config", given)
    run = value_of("--resume", given)
    recipe = value_of("--recipe", given)
    if recipe is not None:
        require(path is None, "--recipe and --config are two descriptions: write `recipe: NAME` into that file")
        require(
            run in (None, "auto"), "--recipe begins a run, and --resume goes on with one that has its own; leave it out"
        )
        base = replace(from_yaml(recipe_file(recipe)), recipe=recipe)
    if path is not None:
        base = from_yaml(Path(path))
    elif run is not None:
        base = from_yaml(find_run(run, value_of("--output", given)) / "config.yaml", whole=True)
    return command_line(RunConfig, given, description, default=base or RunConfig())


def go_on_or_start(arguments: list[str]) -> list[str]:
    """Leave out `--resume auto` where there is no run to go on with: the same command begins one, and goes on later."""
    if value_of("--resume", arguments) != "auto" or has_run(value_of("--output", arguments)):
        return arguments
    kept = [argument for argument in arguments if argument != "--resume=auto"]
    while "--resume" in kept:
        where = kept.index("--resume")
        del kept[where : where + 2]
    return kept


def expand_short_flags(arguments: Sequence[str]) -> list[str]:
    """Write out the flags that may stand without a value: --compile, --no-compile, --resume."""
    expanded: list[str] = []
    for position, argument in enumerate(arguments):
        following = arguments[position + 1] if position + 1 < len(arguments) else "--"
        if argument == "--no-compile":
            expanded += ["--compile", "off"]
        elif argument == "--compile" and following not in ("auto", "on", "off"):
            expanded += ["--compile", "on"]
        elif argument == "--resume" and following.startswith("--"):
            expanded += ["--resume", "newest"]
        else:
            expanded.append(argument)
    return expanded


def value_of(flag: str, arguments: Sequence[str]) -> str | None:
    """The last value given to `--flag VALUE` or `--flag=VALUE`, before the full parse."""
    found = None
    for position, argument in enumerate(arguments):
        if argument == flag and position + 1 < len(arguments):
            found = arguments[position + 1]
        elif argument.startswith(f"{flag}="):
            found = argument.partition("=")[2]
    return found
