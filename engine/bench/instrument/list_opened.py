"""What opening a list of images takes, in a process that has loaded nothing else: `python -m … '{"path": FILE}'`."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from engine.data.sources.open import open_source


def peak_bytes() -> int:
    """The most resident bytes of this program; getrusage's figure begins with that of the process that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))


def opened(path: str) -> dict[str, Any]:
    """Seconds, and the most resident bytes before and after; the libraries that read it count as well."""
    before = peak_bytes()
    began = time.perf_counter()
    source = open_source("folder", path)
    seconds = time.perf_counter() - began
    images = len(source.train) + len(source.val)
    return {"seconds": round(seconds, 3), "peak_bytes": peak_bytes(), "bytes_before": before, "images": images}


if __name__ == "__main__":
    print(json.dumps(opened(**json.loads(sys.argv[1]))))
