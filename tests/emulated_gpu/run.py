"""Runs a command on an emulated GPU: `python tests/emulated_gpu/run.py python launch/train.py --arch resnet18`.

Builds it first where that was not done yet. Exits with NO_GPU and the reason where it cannot be built here.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from build import RUNTIME, CannotBuild, build

NO_GPU = 69  # EX_UNAVAILABLE of sysexits.h


def environment(libraries: Path) -> dict[str, str]:
    """This process's environment, with the emulated GPU in it."""
    added = {
        "LD_LIBRARY_PATH": str(libraries),
        "LD_PRELOAD": str(libraries / RUNTIME),
        "PYTHONPATH": str(Path(__file__).resolve().parent / "python"),
    }
    joined = {name: ":".join(filter(None, (value, os.environ.get(name)))) for name, value in added.items()}
    return {**os.environ, **joined, "TRITON_LIBCUDA_PATH": str(libraries), "EMULATED_GPU_LIBRARIES": str(libraries)}


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    try:
        libraries = build()
    except CannotBuild as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(NO_GPU)
    os.execvpe(sys.argv[1], sys.argv[1:], environment(libraries))
