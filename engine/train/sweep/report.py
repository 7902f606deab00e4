"""What a sweep has found: a line a trial for the terminal, and a page that sorts."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.report.sorted_table import Head, sorted_table
from engine.runs.door import atomic_file
from engine.runs.text_table import text_table
from engine.train.sweep.search import in_words, spread
from engine.train.sweep.space import Range

STATES = {"COMPLETE": "finished", "PRUNED": "stopped early", "FAIL": "failed", "RUNNING": "unfinished"}
PAGE = "sweep.html"
WIDEST = 16
"""Columns of the terminal that a cell may take; the page has all of it."""


def write_report(trials: Sequence[Any], space: Mapping[str, Range], folder: Path, folds: int) -> str:
    """Write `folder`/sweep.html; returns the same as text, the best trial first.

    trials  optuna's FrozenTrial
    """
    order = sorted(trials, key=lambda trial: (-(trial.value or 0.0), trial.number))
    heads = ("trial", *space, "accuracy %", "± %", "after", "state")
    rows = [_row(trial, space, folds) for trial in order]
    best = order[0] if order and order[0].state.name == "COMPLETE" else None
    intro = f"{len(trials)} trials"
    if best is not None:
        intro += f"; the best is trial {best.number}, {spread(best.user_attrs['scores'])}: {in_words(best.params)}"
    numeric = [name not in ("state",) and not _is_choice(space.get(name)) for name in heads]
    page = sorted_table(
        f"Sweep {folder.resolve().name}", intro, [Head(*pair) for pair in zip(heads, numeric, strict=True)], rows
    )
    with atomic_file(folder / PAGE) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")
    short = [name.rpartition(".")[2] for name in heads]
    cells = [[text if len(text) <= WIDEST else f"{text[: WIDEST - 1]}…" for text, _ in row] for row in rows]
    return f"{text_table(short, cells)}\n{intro}"


def _is_choice(span: Range | None) -> bool:
    return span is not None and span.kind == "choice"


def _row(trial: Any, space: Mapping[str, Range], folds: int) -> list[tuple[str, Any]]:
    """(text, value to sort by) of each column; the accuracy of a trial that was stopped is that of its last report."""
    scores, state = trial.user_attrs.get("scores"), trial.state.name
    reports = trial.intermediate_values
    value = statistics.fmean(scores) if scores else reports[max(reports)] if reports else None
    deviation = statistics.stdev(scores) if scores and len(scores) > 1 else None
    drawn = [trial.params.get(field) for field in space]
    done = len(scores) if scores and folds else max(reports, default=0)
    what = f"{done} folds" if folds else "the last epoch" if state == "COMPLETE" else f"epoch {done}"
    told = STATES.get(state, state) + (f": {trial.user_attrs['reason']}" if "reason" in trial.user_attrs else "")
    return [
        (str(trial.number), trial.number),
        *((("" if one is None else f"{one:.4g}" if isinstance(one, float) else str(one)), one) for one in drawn),
        ("" if value is None else f"{100 * value:.2f}", value),
        ("" if deviation is None else f"{100 * deviation:.2f}", deviation),
        (what if done or scores else "", done),
        (told, told),
    ]
