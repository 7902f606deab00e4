"""How a field's flag is written."""

from __future__ import annotations

try:
    import tyro
except ModuleNotFoundError:  # only parsing needs it: measuring from a source tree goes without
    tyro = None  # type: ignore[assignment]

TopLevel = tyro.conf.arg(prefix_name=False) if tyro else None
"""Marks a field whose flag stands alone, without its group: `--lr`, not `--optim.lr`."""

Positional = tyro.conf.Positional if tyro else None
"""Marks a field that stands without a flag."""

Augment = tyro.conf.arg(name="augment", prefix_name=False) if tyro else "augment"
"""Marks the field whose flag is its group's name alone: `--augment medium`."""

Distill = tyro.conf.arg(name="distill", prefix_name=False) if tyro else "distill"
"""The same: `--distill RUN`."""
