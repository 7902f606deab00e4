"""Plan: `python launch/plan.py --arch inceptionv3_fullres --gpu-memory 8GiB --gpus 2`; needs no GPU."""

import gc
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.imports import refuse_foreign_packages

refuse_foreign_packages()

from engine.recovery.start import begin, in_words

begin()

from engine.config import ConfigError
from engine.plan.request import parse
from engine.train.run import fail, show_notices


def main() -> int:
    """Parse the command line, plan, print; returns the exit code."""
    show_notices()
    try:
        options = parse()
        if options.interconnect:
            from engine.plan.scaling.command import run_projection

            return run_projection(options)
        from engine.plan.command import run_plan
        from engine.report.memory_picture import planned_picture

        return run_plan(options, planned_picture)
    except ConfigError as error:
        return fail(error)


if __name__ == "__main__":
    gc.disable()  # a sixth of a plan's time, to find a few megabytes
    sys.exit(in_words(main))
