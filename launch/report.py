"""Report: `python launch/report.py runs/NAME [runs/OTHER ...]` draws runs and compares them; `runs/ --leaderboard`."""

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
    parser.add_argument(
        "--leaderboard",
        action="store_true",
        help="all runs, or those in a folder of runs, beside the learning repository's figures: HTML, Markdown and CSV",
    )
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="CSV",
        help="with --leaderboard: an earlier leaderboard.csv, whose runs stay in although their folders are elsewhere",
    )
    given = parser.parse_args(arguments)
    if given.keep and not given.leaderboard:
        parser.error("--keep goes with --leaderboard")
    folders = given.runs
    try:
        if given.leaderboard:
            return show_leaderboard(folders, given.keep)
        table = summary_table(folders)
        pages = [write_report(folder) for folder in folders]
    except NotARun as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table)
    print(*(f"report {page}" for page in pages), sep="\n")
    return 0


def show_leaderboard(places: list[Path], earlier: Path | None) -> int:
    """Write the leaderboard into the first place, or beside the first run, and print it. Raises NotARun."""
    from engine.report.leaderboard import find_runs, leaderboard
    from engine.report.leaderboard_files import read_csv, terminal_table, write_leaderboard

    runs = find_runs(places)
    lines = leaderboard(runs, read_csv(earlier) if earlier else ())
    print(terminal_table(lines))
    print(*write_leaderboard(lines, places[0].parent if places[0] in runs else places[0]), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(in_words(main))
