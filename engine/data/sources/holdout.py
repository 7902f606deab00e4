"""Validation images out of a set that has none: by seed, each class in its share, groups whole, and written down.

The choice is a function of the images' order, their labels, the share and the seed. A run keeps the names of what was
chosen (split.json), so that images which are added or removed later move nothing across.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from engine.data.sampling import generator
from engine.data.sources.source import DataError

NAME = "split.json"
PURPOSE = 0


@dataclass(frozen=True)
class Holdout:
    """What was held out of a set, as a run folder keeps it."""

    val_share: float
    split_seed: int
    group_by: str
    val: list[str] = field(default_factory=list)
    """Names of the images, relative to the data."""

    def as_dict(self) -> dict[str, Any]:
        """For split.json."""
        return {"val_share": self.val_share, "split_seed": self.split_seed, "group_by": self.group_by, "val": self.val}


def read_holdout(run: Path) -> Holdout | None:
    """What the run in a folder held out; None where it wrote nothing down. Raises DataError for a damaged file."""
    path = run / NAME
    try:
        found = json.loads(path.read_text(encoding="utf-8", errors="surrogateescape"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); put it back, or start a new run") from None
    try:
        if not all(isinstance(name, str) for name in found["val"]):
            raise ValueError("`val` is no list of names")
        return Holdout(float(found["val_share"]), int(found["split_seed"]), str(found["group_by"]), found["val"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is no split of a run ({error}); put it back, or start a new run") from None


def held_out(labels: np.ndarray, share: float, seed: int, groups: Sequence[str] | None = None) -> np.ndarray:
    """bool [N]: which images are held out.

    labels  int64 [N]
    share   of each class, above 0 and below 1; a class of several images has at least one on each side
    groups  N names; images of one name stay together, and the share is met as nearly as they allow

    Raises DataError where nothing can be held out without leaving a class without training images.
    """
    chosen = np.zeros(len(labels), dtype=bool)
    random = generator(seed, 0, PURPOSE)
    if groups is None:
        order = random.permutation(len(labels))
        members = order[np.argsort(labels[order], kind="stable")]  # by class, in random order inside
        starts = np.flatnonzero(np.diff(labels[members], prepend=-1))
        for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(members)], strict=True):
            count = end - start
            chosen[members[start : start + min(count - 1, max(1, round(share * count)))]] = True
    else:
        _, names = np.unique(np.array(groups, dtype=object).astype(str), return_inverse=True)
        chosen = np.isin(names, list(_chosen_groups(labels, names, share, random)))
    if not chosen.any():
        what = "image" if groups is None else "group"
        raise DataError(f"no {what} can be held out for validation: each is all that some class has to train on")
    return chosen


def _chosen_groups(labels: np.ndarray, names: np.ndarray, share: float, random: np.random.Generator) -> set[int]:
    """Groups, the largest first and otherwise by lot, that each bring their classes nearer to the share."""
    pairs, counts = np.unique(np.stack([names, labels]), axis=1, return_counts=True)
    starts = np.flatnonzero(np.diff(pairs[0], prepend=-1))
    parts = np.split(np.arange(len(counts)), starts[1:])
    total = np.bincount(labels)
    wanted, held = share * total, np.zeros(len(total))
    lot = random.permutation(len(parts))
    sizes = np.array([counts[part].sum() for part in parts])
    chosen: set[int] = set()
    for group in lot[np.argsort(-sizes[lot], kind="stable")].tolist():
        own, count = pairs[1, parts[group]], counts[parts[group]]
        before, after = held[own] - wanted[own], held[own] + count - wanted[own]
        if (held[own] + count < total[own]).all() and ((after**2 - before**2) / total[own]).sum() < 0:
            held[own] += count
            chosen.add(group)
    if chosen:
        return chosen
    spare = [
        g for g in np.argsort(sizes, kind="stable").tolist() if (counts[parts[g]] < total[pairs[1, parts[g]]]).all()
    ]
    return set(spare[:1])
