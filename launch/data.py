"""Examine a data set: `python launch/data.py --data.root FOLDER`; takes the flags of launch/train.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.imports import refuse_foreign_packages

refuse_foreign_packages()

from engine.recovery.start import begin, in_words

begin()

from engine.config import ConfigError, parse
from engine.train.run import fail


def main() -> int:
    """Parse the command line, examine, return the exit code."""
    try:
        config = parse(description=DESCRIPTION)
    except ConfigError as error:
        return fail(error)
    from engine.train.data.command import examine_data

    return examine_data(config)


DESCRIPTION = """Examine a data set before training: what there is, what does not decode, copies, near duplicates, leaks
between training and held-out images, one picture under two labels, and what the network will see.

Takes the flags of training: --data and --augment say what is read and how it is changed, --output where the page
goes."""


if __name__ == "__main__":
    sys.exit(in_words(main))
