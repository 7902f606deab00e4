"""Sweep: `python launch/sweep.py ranges.yaml --trials 20 --arch resnet18 --output runs/sweep`, or with `--folds 5`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.imports import refuse_foreign_packages

refuse_foreign_packages()

from engine.recovery.start import begin, in_words

begin()

import signal

from engine.config import ConfigError
from engine.train.run import fail
from engine.train.sweep.command import parse, run_sweep


def main() -> int:
    """Parse the command line, run the trials that are left, report; returns the exit code."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # from here on there are runs to end
    try:
        return run_sweep(parse())
    except ConfigError as error:
        return fail(error)


if __name__ == "__main__":
    sys.exit(in_words(main))
