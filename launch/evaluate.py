"""Evaluate: `python launch/evaluate.py --checkpoint runs/NAME --data FOLDER`."""

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
from engine.use.evaluation import parse, run_evaluation


def main() -> int:
    """Parse the command line, evaluate, print; returns the exit code."""
    try:
        result = run_evaluation(parse())
    except (ConfigError, DataError) as error:
        return fail(error)
    from engine.report.evaluation_report import evaluation_text

    print(evaluation_text(result))
    print(f"written to {result['output']}")
    return 0


if __name__ == "__main__":
    sys.exit(in_words(main))
