"""Export: `python launch/export.py --checkpoint runs/NAME --format onnx --check photos/`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.imports import refuse_foreign_packages

refuse_foreign_packages()

from engine.recovery.start import begin, in_words

begin()

from engine.config import ConfigError
from engine.data.sources.source import DataError
from engine.train.run import fail
from engine.use.export.command import parse, run_export


def main() -> int:
    """Parse the command line, export, check; returns the exit code."""
    try:
        return run_export(parse())
    except (ConfigError, DataError) as error:
        return fail(error)


if __name__ == "__main__":
    sys.exit(in_words(main))
