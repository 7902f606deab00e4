"""The flags of `launch/bench.py`."""

from __future__ import annotations

import argparse
from pathlib import Path


def parse(arguments: list[str] | None, description: str) -> argparse.Namespace:
    """What `launch/bench.py` is asked for: `arguments`, or the command line where they are None."""
    parser = argparse.ArgumentParser(description=description)
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
