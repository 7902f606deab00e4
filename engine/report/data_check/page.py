"""The page of an examined data set: one file that needs nothing but itself."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from engine.data.bad_images import decode
from engine.data.doctor.findings import Findings, Group, Member, splits_of
from engine.data.sources.reading import Unreadable
from engine.data.sources.source import Source
from engine.report.data_check.told import LISTED, leaks_line
from engine.report.page import data_uri
from engine.runs.wording import moment

SHOWN = 12
"""Groups of each kind that are shown with their pictures."""
MEMBERS = 6
THUMBNAIL = (192, 144)
KINDS = (
    ("leaks", "Leaks", "Held out and trained on: what is measured on them is too good."),
    ("contradictory", "One picture, two labels", "The network cannot learn both."),
    ("exact", "Copies", "Byte for byte the same."),
    ("near", "Alike", "Compressed anew, resized, a little cropped or without their colours."),
)


def page(found: Findings, source: Source, name: str, sheet: bytes | None, sheet_note: str) -> str:
    """HTML of the findings, with pictures of the first groups of each kind."""
    import jinja2

    here = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([here, here.parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    bad = bool(found.chosen("leaks") or found.chosen("contradictory"))
    odd = bool(found.unreadable or found.groups)
    order = np.argsort([-count for count in next(iter(found.counts.values()))], kind="stable").tolist()
    return environment.get_template("page.html.jinja").render(
        name=name,
        state="leaks or contradictions" if bad else "look at it" if odd else "all right",
        tone="bad" if bad else "warn" if odd else "good",
        subtitle=", ".join(f"{sum(counts):,} {split} images" for split, counts in found.counts.items()),
        cards=_cards(found),
        sheet=data_uri(sheet) if sheet else None,
        sheet_note=sheet_note,
        sections=[_section(found, source, *kind) for kind in KINDS if found.chosen(kind[0])],
        unreadable=found.unreadable[:LISTED],
        splits=list(found.counts),
        classes=[
            [found.classes[place], *(f"{counts[place]:,}" for counts in found.counts.values())]
            for place in order[:LISTED]
        ],
        written=moment(time.time()),
    )


def _cards(found: Findings) -> list[tuple[str, str, str]]:
    """(label, value, small print)."""
    train = [count for count in found.counts.get("train", []) if count]
    cards = [
        ("classes", f"{len(found.classes):,}", f"{min(train, default=0):,} to {max(train, default=0):,} images each")
    ]
    if found.sizes:
        width, height = found.sizes["median"]
        smallest, largest = (" × ".join(map(str, found.sizes[name])) for name in ("smallest", "largest"))
        cards.append(("median size", f"{width} × {height}", f"{smallest} to {largest}"))
    cards.append(("unreadable", f"{len(found.unreadable):,}", ", ".join(found.formats)))
    for kind, title, _ in KINDS[1:]:
        cards.append((title.lower(), f"{len(found.chosen(kind)):,}", "pictures"))
    leaked = sum(len(group.leaked) for group in found.chosen("leaks"))
    return [*cards, ("leaks", f"{leaked:,}", leaks_line(found))]


def _section(found: Findings, source: Source, kind: str, title: str, note: str) -> tuple[str, str, list, str]:
    groups = found.chosen(kind)
    shown = [_shown(group, source) for group in groups[:SHOWN]]
    more = f"{len(groups) - SHOWN:,} more in data.json." if len(groups) > SHOWN else ""
    return title, note, shown, more


def _shown(group: Group, source: Source) -> list[tuple[str | None, str, str]]:
    return [(_thumbnail(one, source), f"{one.split}: {one.label}", one.name) for one in group.members[:MEMBERS]]


def _thumbnail(one: Member, source: Source) -> str | None:
    """A small picture's data URI; None for one that has gone meanwhile."""
    split: Any = splits_of(source)[one.split]
    try:
        image = decode(split.read(one.index)) if split.paths is not None else Image.fromarray(split.array(one.index))
    except Unreadable:
        return None
    image.thumbnail(THUMBNAIL)
    data = io.BytesIO()
    image.save(data, "PNG")
    return data_uri(data.getvalue())
