"""The check that `kernels` and the other generic names are this project's packages."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("archs", "engine", "kernels")


def refuse_foreign_packages() -> None:
    """Exit with a plain message where one of the project's import names belongs to another distribution.

    The PyPI package `kernels` is the likely one: DeepSpeed's and transformers' extras install it.
    """
    for name in PACKAGES:
        found = importlib.util.find_spec(name)
        origin = Path(found.origin).resolve() if found and found.origin else None
        if origin is None or origin.parent.parent != ROOT:
            sys.exit(
                f"error: `import {name}` finds {origin or 'nothing'}, not this project's {ROOT / name}. "
                f"Uninstall the other package (pip uninstall {name}) or use the project's own .venv (make train)."
            )
