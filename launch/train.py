"""Train: `accelerate launch launch/train.py --arch resnext`, or with plain `python` on one device."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.imports import refuse_foreign_packages

refuse_foreign_packages()

from engine.recovery.start import begin, in_words

begin(unheard=True)

from engine.config import ConfigError
from engine.train.lr_range import asked
from engine.train.run import described, refuse, train
from engine.train.together.print_launch import launch_text, wanted


def main() -> int:
    """Parse the command line, run, return the exit code."""
    if "--list-archs" in sys.argv[1:]:
        from engine.report.arch_table import listing

        print(listing())
        return 0
    try:
        if wanted(sys.argv[1:]):
            print(launch_text(sys.argv[1:]), end="")
            return 0
        arguments, span = asked(sys.argv[1:])
        config = described(arguments)
    except ConfigError as error:
        return refuse(error)
    if span is not None:
        from engine.train.lr_finder import find_lr

        return find_lr(config, span)
    return train(config, command=sys.orig_argv)


if __name__ == "__main__":
    sys.exit(in_words(main))
