"""Report: `python launch/report.py runs/NAME [runs/OTHER ...]` draws each run and compares them."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.imports import refuse_foreign_packages

refuse_foreign_packages()

from engine.recovery.start import begin, in_words

begin()

from engine.report.compare import summary_table, write_report
from engine.runs.history import NotARun


def main(arguments: list[str] | None = None) -> int:
    """Write the reports, print the table and the pages' paths; returns the exit code: 2 where a folder is no run."""
    parser = argparse.ArgumentParser(description="Draw the charts and the page of runs and compare them in a table.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder, as training left it")
    folders = parser.parse_args(arguments).runs
    try:
        table = summary_table(folders)
        pages = [write_report(folder) for folder in folders]
    except NotARun as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table)
    print(*(f"report {page}" for page in pages), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(in_words(main))
