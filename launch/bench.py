"""Measure: `python launch/bench.py --suite archs --budget 8m`; results go to profiles/<machine>/<suite>.json."""

import signal
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.imports import refuse_foreign_packages

refuse_foreign_packages()

from engine.recovery.start import begin, in_words

begin()

from engine.bench.command_line import parse


def main(arguments: list[str] | None = None) -> int:
    """Run the suites that were asked for; returns 1 where a row crashed, 2 for what cannot be meant."""
    given = parse(arguments, __doc__)
    from engine.bench.instrument.options import Options, stay_on_cpu
    from engine.bench.instrument.record import Unwritable
    from engine.bench.pages.gpu_report import gpu_report
    from engine.bench.pages.index import write_index
    from engine.bench.suites.run import choose, run_suites

    signal.signal(signal.SIGINT, signal.default_int_handler)  # from here on there are processes to end
    for stop in (signal.SIGTERM, signal.SIGHUP) if given.report else ():  # suites end at once
        if signal.getsignal(stop) is not signal.SIG_IGN:
            signal.signal(stop, signal.default_int_handler)
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
