"""Shards: `python launch/shard.py make photos shards`, `verify shards`, `unpack shards photos`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.imports import refuse_foreign_packages

refuse_foreign_packages()

from engine.recovery.start import begin, in_words

begin()

from engine.config import ConfigError
from engine.data.sources.source import DataError
from engine.runs.door import CannotWrite
from engine.train.run import fail, show_notices
from engine.use.shards import parse, run


def main() -> int:
    """Parse the command line, do it, say what was done; returns the exit code."""
    show_notices()
    try:
        return run(parse())
    except (ConfigError, DataError) as error:
        return fail(error)
    except CannotWrite as error:
        return fail(error, 1)


if __name__ == "__main__":
    sys.exit(in_words(main))
