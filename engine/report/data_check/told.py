"""Findings in words: some ten lines for the terminal, and the facts of the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.config.pixels.image_size import ImageSize, px, sides
from engine.data.doctor.findings import HELD_OUT, Findings, Group, Member
from engine.runs.wording import listed, percent

LISTED = 200
"""Rows of a table on the page; data.json has all."""
EXAMPLES = 2
"""Of each kind in the terminal."""


def lines(found: Findings, image_size: ImageSize = 0, root: str = "") -> list[str]:
    """What there is, and what is wrong with it; short where nothing is.

    image_size  of the network, in pixels: images with a shorter side are counted; 0 is not known
    root        folder that paths are shown from
    """
    told = [f"images      {_counts(found)}; {len(found.classes):,} classes", f"a class     {_balance(found)}"]
    told.append(f"looked at   {_looked_at(found)}")
    if found.sizes:
        smallest, median, largest = (
            " x ".join(map(str, found.sizes[name])) for name in ("smallest", "median", "largest")
        )
        told.append(f"sizes       {smallest} to {largest}, median {median}{_small(found, image_size)}")
        told.append(f"pixels      {_parts(found.modes)}; {_parts(found.formats)}")
    if found.unreadable:
        examples = "; ".join(f"{_from(root, name)} ({why})" for _, name, why in found.unreadable[:EXAMPLES])
        told.append(f"unreadable  {len(found.unreadable):,}: {examples}{_more(found.unreadable)}")
    for title, kind, what in (
        ("copies", "exact", "byte for byte"),
        ("alike", "near", "compressed anew, resized, cropped or without colours"),
    ):
        if groups := found.chosen(kind):
            images = sum(len(group.members) for group in groups)
            told.append(
                f"{title:<11} {images:,} images are {len(groups):,} pictures, {what}: {_examples(groups, root)}"
            )
    if leaks := found.chosen("leaks"):
        told.append(f"leaks       {leaks_line(found)}: {_examples(leaks, root)}")
    if groups := found.chosen("contradictory"):
        told.append(f"labels      {len(groups):,} pictures have two labels: {_examples(groups, root, labels=True)}")
    if not any((found.unreadable, found.groups)):
        missing = "" if found.near else " (near duplicates were not looked for)"
        told.append(f"all right   nothing unreadable, no copies, no leaks{missing}")
    return told


def leaks_line(found: Findings) -> str:
    """How many held-out images are trained on as well."""
    leaked = {(one.split, one.index): one for group in found.chosen("leaks") for one in group.leaked}
    splits = [split for split, _ in leaked]
    parts = [f"{splits.count(name):,} of {sum(found.counts[name]):,} {name} images" for name in dict.fromkeys(splits)]
    return f"{' and '.join(parts)} are training images too" if parts else "none"


def _counts(found: Findings) -> str:
    return ", ".join(f"{sum(counts):,} {name}" for name, counts in found.counts.items())


def _balance(found: Findings) -> str:
    parts = []
    for name, counts in found.counts.items():
        there = [count for count in counts if count]
        ratio = f", {max(there) / min(there):.3g}:1" if there and max(there) > min(there) else ""
        empty = [label for label, count in zip(found.classes, counts, strict=True) if not count]
        none = f", none of {listed(empty, most=3)}" if empty else ""
        parts.append(f"{name} {min(there, default=0):,} to {max(there, default=0):,}{ratio}{none}")
    return "; ".join(parts)


def _looked_at(found: Findings) -> str:
    if found.whole:
        return "every image, near duplicates included"
    parts = [f"{seen:,} of {sum(found.counts[name]):,} {name}" for name, seen in found.looked_at.items()]
    return f"{', '.join(parts)} images, no near duplicates; all of it: hcr data with the same --data flags"


def _small(found: Findings, image_size: ImageSize) -> str:
    below = found.sizes["shorter_side"]
    if not image_size or below[0] >= min(sides(image_size)):
        return ""
    return f"; shorter side of 1 % below {below[0]} px, of half below {below[1]} px, the network's is {px(image_size)}"


def _parts(counts: dict[str, int]) -> str:
    total = sum(counts.values())
    return ", ".join(
        f"{name} {percent(count / total, 1)}" if len(counts) > 1 else name for name, count in counts.items()
    )


def _examples(groups: Sequence[Group], root: str, labels: bool = False) -> str:
    shown = []
    for group in groups[:EXAMPLES]:
        names = [_from(root, one.name) + (f" ({one.label})" if labels else "") for one in _telling(group)]
        shown.append(" = ".join(names) + (f" and {len(group.members) - 2} more" if len(group.members) > 2 else ""))
    return "; ".join(shown) + _more(groups)


def _telling(group: Group) -> list[Member]:
    """Two images that show what is wrong with a group: of a leak one of each side, else two labels, where there are."""
    first = group.members[0]
    held_out = first.split in HELD_OUT
    other = [one for one in group.members[1:] if group.leak and (one.split in HELD_OUT) != held_out]
    other += [one for one in group.members[1:] if one.label != first.label] + group.members[1:]
    return [first, other[0]]


def _from(root: str, name: str) -> str:
    return name.removeprefix(f"{root.rstrip('/')}/") if root else name


def _more(every: Sequence[Any]) -> str:
    return " …" if len(every) > EXAMPLES else ""
