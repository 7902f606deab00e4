"""Measure: `python launch/bench.py --suite trainer`; results go to profiles/<machine>/<suite>.json."""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.imports import refuse_foreign_packages

refuse_foreign_packages()


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument(
        "--suite", choices=["trainer", "loader", "startup", "compile", "all"], default="all", help="what to measure"
    )
    parser.add_argument("--photos", type=Path, help="folder of photographs for the loader suite (any depth)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender")
    parser.add_argument("--arch", default="resnext50", help="network of the trainer and startup suites")
    parser.add_argument("--output", type=Path, help="folder in place of profiles/")
    return parser.parse_args()


def main() -> int:
    """Run the suites that were asked for; prints and records each."""
    options = parse()
    suites = ["trainer", "loader", "startup", "compile"] if options.suite == "all" else [options.suite]
    if options.suite == "loader" and options.photos is None:
        print("error: --suite loader needs --photos FOLDER", file=sys.stderr)
        return 2
    from engine.bench import suites as known
    from engine.bench.record import record

    for suite in suites:
        if suite == "loader" and options.photos is None:
            print("loader: left out, no --photos FOLDER")
            continue
        figures = known.SUITES[suite](options)
        path = record(suite, figures, options.output)
        print(json.dumps(figures, indent=2))
        print(f"written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
