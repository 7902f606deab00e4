"""A table as one HTML page that sorts itself by the column that is clicked, and needs nothing but itself."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.runs.wording import moment


@dataclass(frozen=True)
class Head:
    """A column."""

    name: str
    numeric: bool = False
    code: bool = False
    """Its cells are commands."""


def sorted_table(title: str, intro: str, heads: Sequence[Head], rows: Sequence[Sequence[tuple[str, Any]]]) -> str:
    """HTML: a row has (text, value to sort by) a head; a value of None comes last."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    cells = [
        [
            {"text": text, "value": "" if value is None else value, "numeric": head.numeric, "code": head.code}
            for head, (text, value) in zip(heads, row, strict=True)
        ]
        for row in rows
    ]
    template = environment.get_template("sorted_table.html.jinja")
    return template.render(title=title, intro=intro, heads=heads, rows=cells, written=moment(time.time()))
