"""That the regression tests catch what they should and nothing else: `python tests/benchmarks/prove.py`.

Runs them as `make bench` does, 20 times unchanged and once with each slowdown of plants.py, and writes what they said
to profiles/<machine>/regressions.json. Exit code 1 where one was not caught or a false alarm was raised.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from plants import PLANTS  # noqa: E402

from engine.bench.instrument.record import Store  # noqa: E402


def run(plant: str | None) -> tuple[list[str], list[str], int]:
    """(failed tests, what they said, exit code) of one run of the regression tests."""
    environment = os.environ | {"COLUMNS": "400"} | ({"PLANT": plant} if plant else {})
    command = [sys.executable, "-m", "pytest", "tests/benchmarks", "-m", "slow", "-q", "--tb=no", "-rfEs"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    lines = re.findall(r"^(?:FAILED|ERROR) \S+::(.+?) - (.*)$", done.stdout, re.MULTILINE)
    skipped = re.findall(r"^SKIPPED .*", done.stdout, re.MULTILINE)
    if done.returncode not in (0, 1) or skipped:
        sys.exit("\n".join([*skipped, done.stdout[-2000:], done.stderr[-2000:]]))
    return [test for test, _ in lines], [text for _, text in lines], done.returncode


def main() -> int:
    """Run everything, print a line a run, write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--unchanged", type=int, default=20, help="runs without a plant")
    parser.add_argument("--only", nargs="+", choices=[*PLANTS, "unchanged"], help="some of the runs")
    parser.add_argument("--output", type=Path, help="folder in place of profiles/")
    given = parser.parse_args()
    store, wrong = Store("regressions", given.output), 0
    runs = [(name, name, test) for name, (_, test) in PLANTS.items()]
    runs += [(f"unchanged {number}", None, None) for number in range(1, given.unchanged + 1)]
    chosen = [run for run in runs if not given.only or (run[1] or "unchanged") in given.only]
    for key, plant, expected in chosen:
        began = time.monotonic()
        failed, said, code = run(plant)
        right = expected in failed and code == 1 if expected else not failed and code == 0
        wrong += not right
        seconds = time.monotonic() - began
        summary = "; ".join(f"{test}: {text}" for test, text in zip(failed, said, strict=True)) or "no alarm"
        figures = {"planted": plant, "expected": expected, "failed": failed, "said": said, "exit_code": code}
        figures |= {"right": right, "summary": f"{'' if right else 'WRONG: '}{summary}"}
        store.put(key, {"plant": plant}, "measured", seconds, {"figures": figures})
        print(f"{key}: {figures['summary']} ({seconds:.0f} s)", flush=True)
    print(f"{len(chosen) - wrong} of {len(chosen)} right; {store.path}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
