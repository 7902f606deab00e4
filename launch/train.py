"""Train: `accelerate launch launch/train.py --arch resnext`, or with plain `python` on one device."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.imports import refuse_foreign_packages

refuse_foreign_packages()

from engine.recovery.start import begin, in_words

begin()

from engine.config import ConfigError, parse
from engine.train.run import fail, train


def main() -> int:
    """Parse the command line, run, return the exit code."""
    if "--list-archs" in sys.argv[1:]:
        from engine.report.arch_table import listing

        print(listing())
        return 0
    try:
        config = parse()
    except ConfigError as error:
        return fail(error)
    return train(config, command=sys.orig_argv)


if __name__ == "__main__":
    sys.exit(in_words(main))
