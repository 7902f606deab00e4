"""The suites of `launch/bench.py` by name, in order of value, and how one is run."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from engine.bench.instrument.options import Options
from engine.bench.instrument.record import Store
from engine.bench.instrument.rows import Outcome, Row, describe, missing_row, run_rows
from engine.runs.text_table import text_table
from engine.step.device_memory.allocator_settings import choose_expandable

SUITES = {
    "training": "engine.bench.suites.training_suite",
    "machine": "engine.bench.suites.machine_rows",
    "archs": "engine.bench.suites.arch_rows",
    "trainer": "engine.bench.suites.trainer_tax",
    "loader": "engine.bench.suites.loader_rate",
    "kernels": "engine.bench.suites.kernel_suite",
    "memory": "engine.bench.suites.memory_suite",
    "graphs": "engine.bench.suites.graph_suite",
    "startup": "engine.bench.suites.startup",
    "compile": "engine.bench.suites.compile_gain",
    "zoo": "engine.bench.suites.zoo_rows",
    "accuracy": "engine.bench.suites.accuracy_rows",
    "runs": "engine.bench.suites.run_record",
}
SUITES |= {
    file.name.removesuffix("_suite"): f"{__package__}.{file.name}"
    for file in pkgutil.iter_modules([str(Path(__file__).parent)])
    if file.name.endswith("_suite") and f"{__package__}.{file.name}" not in SUITES.values()
}
"""Each module has `rows(options)`, and `table(rows)` where its table is not the plain one. A file NAME_suite.py in this
folder is the suite NAME by being there."""


class UnknownSuite(ValueError):
    """No suite has this name; the message says which names come nearest."""


def choose(name: str) -> list[str]:
    """The suite called `name`, or all of them for "all". Raises UnknownSuite."""
    if name == "all":
        return list(SUITES)
    if name not in SUITES:
        near = difflib.get_close_matches(name, SUITES, n=2, cutoff=0.4)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise UnknownSuite(f"no suite is called {name!r}{hint} (there are {', '.join(SUITES)}, all)")
    return [name]


def load(name: str) -> ModuleType | None:
    """The module of a suite, or None where it, or something that it needs to be read, is not on this machine."""
    try:
        return importlib.import_module(SUITES[name])
    except ModuleNotFoundError:
        return None


def rows_of(name: str, options: Options) -> list[Row]:
    """The rows of a suite; one that tells why, where the suite is not there."""
    try:
        module = importlib.import_module(SUITES[name])
    except ModuleNotFoundError as error:
        return [missing_row(name, f"{error.name} is not there")]
    return list(module.rows(options))


def run_suites(names: Iterable[str], options: Options, say: Callable[[str], None] = print) -> dict[str, Outcome]:
    """Run suites one after the other within the options' budget; prints each one's table and what became of its rows.

    Raises Unwritable where results cannot be written.
    """
    choose_expandable()  # as a run does
    ends = time.monotonic() + options.budget
    outcomes = {}
    for name in names:
        store = Store(name, options.output)
        left = replace(options, budget=max(0.0, ends - time.monotonic()))
        outcomes[name] = run_rows(rows_of(name, left), store, left.budget, options.fresh, say, options.go_on)
        say(table_of(name, store.rows))
        say(describe(outcomes[name], store) + "\n")
    return outcomes


def table_of(name: str, rows: dict[str, dict[str, Any]]) -> str:
    """A suite's rows as text."""
    module = load(name)
    if module is not None and hasattr(module, "table"):
        return text_table(*module.table(rows))
    return text_table(*plain_table(rows))


def plain_table(rows: dict[str, dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """(heads, cells): every ratio of every row, or what became of the row."""
    cells = []
    for key, row in rows.items():
        if row["status"] != "measured":
            cells.append([key, row["status"], "", "", row.get("error") or row.get("reason", "")])
            continue
        figures = row["figures"]
        ratios = figures.get("ratio", {})
        for name, ratio in ratios.items():
            interval = f"{ratio['low']:.3f}-{ratio['high']:.3f}" if "low" in ratio else ""
            cells.append([key, name, f"{ratio['median']:.3f}", interval, ""])
        if not ratios:
            cells.append([key, "measured", "", "", figures.get("summary", "")])
    return ["row", "what", "ratio", "95 % interval", ""], cells
