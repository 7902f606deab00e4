"""What the looks at a set's images add up to: groups of one picture, what they mean, and all of it as plain values."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engine.data.balance import class_counts
from engine.data.doctor.look import Seen
from engine.data.sources.source import Source, Split

HELD_OUT = ("val", "test")
"""Splits of which nothing may be trained on."""


@dataclass(frozen=True)
class Member:
    """An image in a group."""

    split: str
    index: int
    label: str
    name: str
    """Its path, or its number in a split of arrays."""


@dataclass
class Group:
    """Images that are one picture."""

    members: list[Member]
    exact: bool
    """Byte for byte; else as near as `near_duplicates` says."""

    @property
    def leak(self) -> bool:
        """Whether it is trained on and held out as well."""
        splits = {one.split for one in self.members}
        return "train" in splits and bool(splits & set(HELD_OUT))

    @property
    def contradictory(self) -> bool:
        """Whether it has two labels."""
        return len({one.label for one in self.members}) > 1

    @property
    def leaked(self) -> list[Member]:
        """The held-out images of a leak."""
        return [one for one in self.members if one.split in HELD_OUT] if self.leak else []


@dataclass
class Findings:
    """A set of images, examined."""

    classes: list[str]
    counts: dict[str, list[int]]
    """Images of each class by split."""
    looked_at: dict[str, int]
    """Images that were looked at, by split."""
    near: bool
    """Whether near duplicates were looked for."""
    sizes: dict[str, Any] = field(default_factory=dict)
    modes: dict[str, int] = field(default_factory=dict)
    formats: dict[str, int] = field(default_factory=dict)
    unreadable: list[tuple[str, str, str]] = field(default_factory=list)
    """(split, name, why)."""
    groups: list[Group] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        """Whether every image was looked at, near duplicates included."""
        return self.near and all(sum(self.counts[name]) == seen for name, seen in self.looked_at.items())

    def chosen(self, kind: str) -> list[Group]:
        """Groups by what they are: `exact`, `near`, `leaks`, `contradictory`."""
        how = {
            "exact": lambda group: group.exact,
            "near": lambda group: not group.exact,
            "leaks": lambda group: group.leak,
            "contradictory": lambda group: group.contradictory,
        }[kind]
        return [group for group in self.groups if how(group)]

    def as_dict(self) -> dict[str, Any]:
        """For JSON; `from_dict` gives it back."""
        groups = [
            {
                "exact": group.exact,
                "leak": group.leak,
                "contradictory": group.contradictory,
                "images": [vars(one) for one in group.members],
            }
            for group in self.groups
        ]
        return {**vars(self), "groups": groups}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Findings:
        """What `as_dict` gave. Raises KeyError or TypeError for anything else."""
        groups = [Group([Member(**one) for one in group["images"]], group["exact"]) for group in values["groups"]]
        unreadable = [tuple(one) for one in values["unreadable"]]
        return cls(**{**values, "groups": groups, "unreadable": unreadable})


def splits_of(source: Source) -> dict[str, Split]:
    """Every split that has images, by its name."""
    named = {name: getattr(source, name, None) for name in ("train", *HELD_OUT)}
    return {name: split for name, split in named.items() if split is not None and len(split)}


def add_up(
    source: Source, seen: dict[str, Sequence[Seen]], pairs: Iterable[tuple[int, int, float]], near: bool
) -> Findings:
    """Findings from the looks at each split's images.

    pairs  near duplicates, as places in the readable images of all splits in turn (`readable`)
    """
    splits = splits_of(source)
    counts = {name: class_counts(one.labels, len(source.classes)).tolist() for name, one in splits.items()}
    found = Findings(list(source.classes), counts, {name: len(one) for name, one in seen.items()}, near)
    everything = [one for looks in seen.values() for one in looks]
    shapes = np.array([(one.width, one.height) for one in everything if one.width])
    if len(shapes):
        sides = shapes.min(axis=1)
        found.sizes = {
            "smallest": shapes[sides.argmin()].tolist(),
            "median": np.median(shapes, axis=0).astype(int).tolist(),
            "largest": shapes[shapes.prod(axis=1).argmax()].tolist(),
            "shorter_side": np.quantile(sides, (0.01, 0.5, 0.99)).astype(int).tolist(),
        }
    found.modes = dict(Counter(one.mode for one in everything if one.mode).most_common())
    found.formats = dict(Counter(one.format for one in everything if one.format).most_common())
    for name, looks in seen.items():
        found.unreadable += [(name, _name(splits[name], one.index), one.wrong) for one in looks if one.wrong]
    found.groups = _groups(source, seen, pairs)
    return found


def readable(seen: dict[str, Sequence[Seen]]) -> list[tuple[str, Seen]]:
    """(split, look) of every image that has a grey copy."""
    return [(name, one) for name, looks in seen.items() for one in looks if one.small is not None]


def _groups(source: Source, seen: dict[str, Sequence[Seen]], pairs: Iterable[tuple[int, int, float]]) -> list[Group]:
    """Exact groups, and groups that near pairs tie together; an exact one is part of a near one, too."""
    splits = splits_of(source)

    def member(key: tuple[str, int]) -> Member:
        split = splits[key[0]]
        return Member(*key, source.classes[int(split.labels[key[1]])], _name(split, key[1]))

    same: dict[bytes, list[tuple[str, int]]] = defaultdict(list)
    for name, looks in seen.items():
        for one in looks:
            if one.digest:
                same[one.digest].append((name, one.index))
    exact = [keys for keys in same.values() if len(keys) > 1]
    first = {key: keys[0] for keys in exact for key in keys}
    copies = {keys[0]: keys for keys in exact}
    there = [(name, one.index) for name, one in readable(seen)]
    above: dict[tuple[str, int], tuple[str, int]] = {}

    def top(key: tuple[str, int]) -> tuple[str, int]:
        while above.get(key, key) != key:
            key = above[key]
        return key

    for left, right, _ in pairs:
        one, other = (top(first.get(there[place], there[place])) for place in (left, right))
        if one != other:
            above[max(one, other)] = min(one, other)
    tied: dict[tuple[str, int], list[tuple[str, int]]] = defaultdict(list)
    for key in {*above, *above.values()}:
        tied[top(key)] += copies.get(key, [key])
    groups = [Group([member(key) for key in keys], exact=True) for keys in exact]
    groups += [Group([member(key) for key in sorted(keys)], exact=False) for keys in tied.values()]
    return sorted(groups, key=lambda group: (not group.leak, not group.contradictory, not group.exact))


def _name(split: Split, index: int) -> str:
    return f"number {index}" if split.paths is None else split.path(index)
