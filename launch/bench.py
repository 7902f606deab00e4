"""Measure: `python launch/bench.py --suite archs --budget 8m`; results go to profiles/<machine>/<suite>.json."""

import argparse
import signal
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.imports import refuse_foreign_packages

refuse_foreign_packages()

from engine.recovery.start import begin, in_words

begin()


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--suite", default="all", help="as machine or archs; a wrong name lists them")
    add("--budget", help="wall clock that may be spent, as 8m, 90s or 1h; the most valuable rows come first")
    add("--arch", nargs="+", default=[], help="networks (default: the suite's own list)")
    add("--batch-size", type=int, default=0, help="images a step (default: the suite's)")
    add("--image-size", type=int, default=0, help="pixels (default: the suite's)")
    add("--precision", default="", help="fp32, bf16 or fp16 (default: the suite's)")
    add("--compile", choices=["on", "off"], help="of ours in archs (default: on with a GPU)")
    add("--recompute", choices=["none", "block"], default="none", help="of ours in archs")
    add("--fused", choices=["auto", "on", "off"], default="", help="of ours in archs (default: auto)")
    add("--rounds", type=int, default=0, help="turns of each contender (default: the suite's)")
    add("--photos", type=Path, help="folder of photographs for the loader suite (any depth)")
    add("--data", type=Path, help="CIFAR-10 for the accuracy suite: train/ and test/ of class folders, or a .tar.zst")
    add("--runs", type=Path, nargs="+", default=[], help="finished run folders for the runs suite")
    add("--output", type=Path, help="folder in place of profiles/")
    add("--fresh", action="store_true", help="measure again what is in the file already")
    add("--dry-run", action="store_true", help="every line on the CPU at tiny sizes; profiles/ stays as it is")
    add("--continue", action="store_true", dest="go_on", help="only what is missing; what failed at this commit stays")
    add("--warmed", action="store_true", help="networks are compiled already: archs does not compile ahead")
    add("--report", action="store_true", help="first contact, in order of value within the budget; a table and a page")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the suites that were asked for; returns 1 where a row crashed, 2 for what cannot be meant."""
    given = parse(arguments)
    from engine.bench.instrument.options import Options, stay_on_cpu
    from engine.bench.instrument.record import Unwritable
    from engine.bench.pages.gpu_report import gpu_report
    from engine.bench.pages.index import write_index
    from engine.bench.suites.run import choose, run_suites

    signal.signal(signal.SIGINT, signal.default_int_handler)  # from here on there are processes to end
    if given.dry_run:
        stay_on_cpu()
        given.output = given.output or Path(tempfile.mkdtemp(prefix="bench-dry-run-"))
    try:
        suites = choose(given.suite)
        options = Options(
            archs=tuple(given.arch),
            batch_size=given.batch_size,
            image_size=given.image_size,
            precision=given.precision,
            compile=None if given.compile is None else given.compile == "on",
            recompute=given.recompute == "block",
            fused=given.fused,
            rounds=given.rounds,
            budget=Options.seconds(given.budget),
            dry_run=given.dry_run,
            fresh=given.fresh,
            go_on=given.go_on,
            warmed=given.warmed,
            output=given.output,
            photos=given.photos,
            data=given.data,
            runs=tuple(given.runs),
        )
        if given.report:
            failed = gpu_report(options)
        else:
            failed = sum(bool(outcome.failed) for outcome in run_suites(suites, options).values())
        if options.output is None:
            write_index()
    except (ValueError, Unwritable) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; rows that were measured are kept, --continue measures the others", file=sys.stderr)
        return 130
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(in_words(main))
