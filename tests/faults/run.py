"""The whole table: `python -m tests.faults.run --output profiles/faults.json`, or `make test-faults`.

Every kind at so many random moments, each compared with a run that nothing disturbed: weights bit for bit, the rows
that count, files left lying, processes left running, exit codes and messages. Exits with 1 where one is wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from engine.runs.provenance import command, commit
from tests.faults.kinds import DEAR, KINDS
from tests.faults.trial import Bench, Wrong, moment


def trials(bench: Bench, name: str, count: int) -> dict:
    """One kind at `count` moments: how many, the outcomes, what was wrong, seconds."""
    outcomes: Counter[str] = Counter()
    wrong, began = [], time.monotonic()
    for number in range(count):
        try:
            outcomes[KINDS[name](bench, moment(name, number))] += 1
        except Wrong as error:
            wrong.append({"moment": number, "what": str(error)})
            print(f"  {name}, moment {number}: {error}", flush=True)
    return {"moments": count, "outcomes": dict(outcomes), "wrong": wrong, "seconds": round(time.monotonic() - began, 1)}


def main() -> int:
    """Run, print a line a kind, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=20, help="of a kind that takes seconds")
    parser.add_argument("--dear", type=int, default=8, help="of a kind that starts launchers")
    parser.add_argument("--kind", action="append", help="only these")
    parser.add_argument("--output", type=Path, help="table to write, as JSON")
    options = parser.parse_args()
    table = {}
    with tempfile.TemporaryDirectory(prefix="hcr-faults") as folder:
        bench = Bench(Path(folder))
        for name in options.kind or KINDS:
            table[name] = trials(bench, name, options.dear if name in DEAR else options.moments)
            said = ", ".join(f"{count} {outcome}" for outcome, count in table[name]["outcomes"].items())
            bad = f", {len(table[name]['wrong'])} WRONG" if table[name]["wrong"] else ""
            print(f"{name:32} {table[name]['moments']:3} moments: {said}{bad}", flush=True)
    if options.output:
        about = {"command": command(), "commit": commit(), "undisturbed_seconds": round(bench.seconds, 2)}
        options.output.write_text(json.dumps(about | {"kinds": table}, indent=1) + "\n", encoding="utf-8")
    return int(any(row["wrong"] for row in table.values()))


if __name__ == "__main__":
    sys.exit(main())
