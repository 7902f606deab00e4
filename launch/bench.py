"""Measure: `python launch/bench.py --suite trainer`; results go to profiles/<machine>/<suite>.json."""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.imports import refuse_foreign_packages

refuse_foreign_packages()


NEEDS = {"loader": "photos", "runs": "runs"}
"""Suites that measure something that the person has to name."""


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    suites = ["trainer", "loader", "startup", "compile", "runs", "all"]
    parser.add_argument("--suite", choices=suites, default="all", help="what to measure")
    parser.add_argument("--photos", type=Path, help="folder of photographs for the loader suite (any depth)")
    parser.add_argument("--runs", type=Path, nargs="+", help="finished run folders for the runs suite")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender")
    parser.add_argument("--arch", default="resnext50", help="network of the trainer, startup and compile suites")
    parser.add_argument("--output", type=Path, help="folder in place of profiles/")
    return parser.parse_args()


def main() -> int:
    """Run the suites that were asked for; prints and records each."""
    options = parse()
    from engine.bench.record import record
    from engine.bench.suites import SUITES

    for suite in SUITES if options.suite == "all" else [options.suite]:
        need = NEEDS.get(suite)
        if need and getattr(options, need) is None:
            print(f"{suite}: left out, it needs --{need}", file=sys.stderr)
            if options.suite != "all":
                return 2
            continue
        figures = SUITES[suite](options)
        print(json.dumps(figures, indent=2))
        print(f"written to {record(suite, figures, options.output)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
