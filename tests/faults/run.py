"""The whole table: `python -m tests.faults.run --output profiles/faults.json`, or `make test-faults`.

Every kind at so many random moments, each compared with a run that nothing disturbed: weights bit for bit, the rows
that count, files left lying, processes left running, exit codes and messages. Exits with 1 where one is wrong. The
file is written after each kind; `--continue` keeps what is in it already, so that the table can be made in parts
(`--kind`), and has the new rows' command and load in them. `mean_load` is of all that ran on the machine: processes
that wanted a core.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import os
import queue
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from engine.runs.provenance import command, commit
from tests.faults.kinds import DEAR, HOSTS, KINDS
from tests.faults.over_hosts import why_not
from tests.faults.trial import Bench, Wrong, moment

Trial = tuple[str, int]
"""Kind and number."""


def one(bench: Bench, name: str, number: int) -> tuple[str, str]:
    """(outcome, empty) of a trial, or (empty, what was wrong)."""
    try:
        return KINDS[name](bench, moment(name, number)), ""
    except Wrong as error:
        return "", str(error)
    except Exception:
        return "", f"the harness itself: {traceback.format_exc()[-600:]}"


def work(bench: Bench, place: int, trials: list[Trial], next_one: Any, results: Any) -> None:
    """A worker: takes trials from the list, in a folder of its own, until there are none."""
    bench = copy.copy(bench)
    bench.folder = bench.folder / f"worker-{place}"
    bench.folder.mkdir()
    while True:
        with next_one.get_lock():
            at, next_one.value = next_one.value, next_one.value + 1
        if at >= len(trials):
            return
        began = time.monotonic()
        outcome, wrong = one(bench, *trials[at])
        results.put((*trials[at], outcome, wrong, time.monotonic() - began))


def all_of(bench: Bench, trials: list[Trial], processes: int) -> Iterator[tuple[str, int, str, str, float]]:
    """(kind, number, outcome, what was wrong, seconds) of each trial, as they end."""
    context = multiprocessing.get_context("fork")
    next_one, results = context.Value("l", 0), context.Queue()
    workers = [
        context.Process(target=work, args=(bench, place, trials, next_one, results), daemon=True)
        for place in range(processes)
    ]
    for worker in workers:
        worker.start()
    for _ in trials:
        while True:
            try:
                yield results.get(timeout=5)
                break
            except queue.Empty:
                if not any(worker.is_alive() for worker in workers):
                    raise RuntimeError("the workers ended before their trials did") from None


def main() -> int:
    """Run, print a line a kind, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=20, help="of a kind that takes seconds")
    parser.add_argument("--dear", type=int, default=8, help="of a kind that starts several processes")
    parser.add_argument("--kind", action="append", choices=list(KINDS), metavar="KIND", help="only these")
    parser.add_argument("--processes", type=int, default=2, help="trials at a time")
    parser.add_argument("--output", type=Path, help="table to write, as JSON")
    parser.add_argument("--continue", action="store_true", dest="go_on", help="leave out the kinds that it has whole")
    options = parser.parse_args()
    wanted = {name: options.dear if name in DEAR else options.moments for name in options.kind or KINDS}
    if reason := why_not():
        wanted = {name: count for name, count in wanted.items() if name not in HOSTS}
        print(f"left out: {', '.join(sorted(HOSTS))} ({reason})")
    table: dict[str, dict] = {}
    earlier: dict[str, Any] = {}
    if options.go_on and options.output and options.output.exists():
        earlier = json.loads(options.output.read_text(encoding="utf-8"))
        before = earlier.pop("kinds")
        whole = {name for name, row in before.items() if row["moments"] == wanted.get(name) and not row["wrong"]}
        table = {name: row for name, row in before.items() if name in whole or name not in wanted}
    trials = [(name, number) for name, count in wanted.items() if name not in table for number in range(count)]
    with tempfile.TemporaryDirectory(prefix="hcr-faults") as folder:
        bench = Bench(Path(folder))
        about = {"command": command(), "undisturbed_seconds": round(bench.seconds, 2), "cores": os.cpu_count()}
        loads = []
        rows = {name: {"moments": 0, "outcomes": Counter(), "wrong": [], "seconds": 0.0} for name, _ in trials}
        for name, number, outcome, wrong, seconds in all_of(bench, trials, options.processes):
            row = rows[name]
            loads.append(os.getloadavg()[0])
            row["moments"] += 1
            row["seconds"] = round(row["seconds"] + seconds, 1)
            if wrong:
                row["wrong"].append({"moment": number, "what": wrong})
                print(f"  {name}, moment {number}: {wrong}", flush=True)
            else:
                row["outcomes"][outcome] += 1
            if row["moments"] == wanted[name]:
                circumstances = about | {"mean_load": round(sum(loads) / len(loads), 1)}
                table[name] = row | {"commit": commit()} | (circumstances if earlier else {})
                said = ", ".join(f"{count} {outcome}" for outcome, count in row["outcomes"].items())
                bad = f", {len(row['wrong'])} WRONG" if row["wrong"] else ""
                print(f"{name:40} {row['moments']:3} moments, {row['seconds']:6.1f} s: {said}{bad}", flush=True)
                write(options.output, earlier or circumstances, table)
    return int(any(row["wrong"] for row in table.values()))


def write(path: Path | None, about: dict, table: dict[str, dict]) -> None:
    """The table so far, its kinds in their own order."""
    if path is not None:
        ordered = {name: table[name] for name in KINDS if name in table}
        path.write_text(json.dumps(about | {"kinds": ordered}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
