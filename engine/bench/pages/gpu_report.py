"""All suites of a machine within one budget, then one table and one page: what `make gpu-report` does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import engine.report
from engine.bench.contact import AFTER, STEPS, Contact, Step, first_contact
from engine.bench.instrument.options import Options
from engine.bench.instrument.peers import NotAvailable, need
from engine.bench.instrument.record import PROFILES, Unwritable, load, machine
from engine.bench.suites import arch_rows
from engine.bench.suites.run import SUITES
from engine.runs.door import atomic_file
from engine.runs.provenance import ROOT, commit, versions
from engine.runs.text_table import text_table
from engine.step.plan import use_cuda

AHEAD = ("-m", "engine.bench.ahead")
LONGEST = 12_000
"""Signs of the table that is printed last: a terminal that keeps only the end of what is said keeps all of it."""
TEMPLATE = "bench_page.html.jinja"
NO_GPU = f"no GPU: PyTorch {torch.__version__} measures the CPU"
CROWDED = 0.9
"""Share of a GPU's memory that should be free; below it another process holds the rest."""


def gpu_report(options: Options, say: Callable[[str], None] = print, steps: Sequence[Step] = (*STEPS, *AFTER)) -> int:
    """First contact within the budget, then one table and report.html; returns how many steps did not pass.

    This process makes no context on the GPU before the end: every step has the whole card.

    Raises Unwritable where results cannot be written.
    """
    key, notes = looked_at(options.dry_run)
    folder = (options.output or PROFILES) / key
    try:
        contact = Contact(folder, forwarded(options), say, options.fresh)
    except OSError as error:
        raise Unwritable(f"{folder} cannot be written ({error.strerror}); give another --output") from None
    if options.go_on:
        contact.go_on()
    for note in notes:
        say(f"note: {note}")
    if options.dry_run:  # GPU tests have nothing to go through
        steps = [step for step in steps if step.suite]
    cuda = not options.dry_run and notes[:1] != [NO_GPU]
    statuses = first_contact(options, contact, steps, AHEAD if cuda else ())
    try:
        page = f"page {write_page(folder, notes)}"
    except NotAvailable as error:
        page = f"no page: {error}"
    table = summary(folder)
    say(table if len(table) <= LONGEST else table[: LONGEST - 80] + f"\n... the rest is in {folder}")
    say(text_table(("step", "status", "seconds"), contact.told()))
    say(page)
    return sum(status != "passed" for status in statuses.values())


def looked_at(dry_run: bool) -> tuple[str, list[str]]:
    """This machine's key and what a reader must know first, found out by a process of its own."""
    code = "import json\nfrom engine.bench.pages.gpu_report import machine, machine_notes\n"
    code += "print(json.dumps([machine()['key'], machine_notes()]))"
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if dry_run else {}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | hidden, capture_output=True, text=True, check=True
    )
    key, notes = json.loads(done.stdout.splitlines()[-1])
    return key, notes


def forwarded(options: Options) -> list[str]:
    """The options as arguments of the processes that run suites."""
    given = {"--output": options.output, "--photos": options.photos, "--data": options.data}
    given |= {"--precision": options.precision, "--batch-size": options.batch_size, "--image-size": options.image_size}
    given |= {"--rounds": options.rounds}
    arguments = [word for flag, value in given.items() if value for word in (flag, str(value))]
    return arguments + (["--dry-run"] if options.dry_run else [])


def machine_notes() -> list[str]:
    """What a reader must know before the figures: no GPU, or one that another process fills."""
    if not use_cuda():
        return [NO_GPU]
    free, total = torch.cuda.mem_get_info()
    if free >= CROWDED * total:
        return []
    gib = 2**30
    return [
        f"only {free / gib:.1f} of the GPU's {total / gib:.1f} GiB are free: another process holds the rest. "
        "Rows that do not fit say so, and rates are those of a shared GPU"
    ]


def documents(folder: Path) -> dict[str, dict[str, Any]]:
    """The result files of one machine by suite, in the suites' order; those that are not understood are left out."""
    found = {}
    for suite in SUITES:
        path = folder / f"{suite}.json"
        document = load(path)[0] if path.is_file() else None
        if document is not None:
            found[suite] = document
    return found


def summary(folder: Path) -> str:
    """One line a row with a ratio, over all suites: the table that is printed last."""
    cells = []
    for suite, document in documents(folder).items():
        for key, row in document["rows"].items():
            cells += [[suite, *line] for line in _lines(key, row)]
        missed = document.get("not_reached", [])
        cells += [[suite, f"{len(missed)} rows", "not reached", "", ""]] if missed else []
    return text_table(["suite", "row", "what", "ratio", "of floor"], cells, left=3)


def _lines(key: str, row: dict[str, Any]) -> list[list[str]]:
    if row["status"] != "measured":
        return [[key, row.get("error") or row.get("reason", ""), row["status"], ""]]
    figures = row["figures"]
    ratios = figures.get("ratio", {})
    ratios = {"ours / theirs": ratios} if "median" in ratios else ratios
    ours = figures.get("contenders", {}).get("HCR", {})
    share = f"{100 * ours['share_of_floor']:.0f} %" if "share_of_floor" in ours else ""
    lines = [[key, name, f"{ratio['median']:.3f}", share] for name, ratio in ratios.items()]
    return lines or [[key, str(figures.get("summary", "measured")), "", ""]]


def bar_groups(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The `archs` rows as groups of bars: images/s of each contender, and the share of the floor of each."""
    groups = []
    for key, row in document["rows"].items():
        contenders = row.get("figures", {}).get("contenders")
        if not contenders:
            continue
        fastest = max(one["images_per_second"] for one in contenders.values())
        bars = [
            {
                "name": name,
                "place": arch_rows.CONTENDERS.index(name),
                "rate": one["images_per_second"],
                "width": 100 * one["images_per_second"] / fastest,
                "share": 100 * one["share_of_floor"],
            }
            for name, one in contenders.items()
        ]
        floor = row["figures"]["floor"]
        groups.append({"name": key, "bars": bars, "bound": floor["bound"], "ms": 1e3 * floor["floor_seconds"]})
    return groups


def write_page(folder: Path, notes: list[str]) -> Path:
    """Write `folder`/report.html, a page that needs nothing but itself; returns its path.

    Raises NotAvailable where jinja2, which torch itself depends on, is not installed.
    """
    jinja2 = need("jinja2")
    here = Path(__file__).parent, Path(engine.report.__file__).parent
    found = documents(folder)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(here),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    zoo = [
        {"name": key, "ratio": row["figures"]["ratio"], "saved": row["figures"]["saved_ratio"]}
        for key, row in found.get("zoo", {"rows": {}})["rows"].items()
        if row["status"] == "measured" and "saved_ratio" in row["figures"]
    ]
    tables = {
        suite: [line for key, row in document["rows"].items() for line in _lines(key, row)]
        for suite, document in found.items()
        if suite not in ("archs", "zoo")
    }
    failed = {
        suite: [
            line
            for key, row in found[suite]["rows"].items()
            if row["status"] != "measured"
            for line in _lines(key, row)
        ]
        for suite in ("archs", "zoo")
        if suite in found
    }
    page = environment.get_template(TEMPLATE).render(
        machine=machine(),
        versions=versions(),
        commit=commit(),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        notes=notes,
        groups=bar_groups(found["archs"]) if "archs" in found else [],
        zoo=sorted(zoo, key=lambda one: one["ratio"]["median"]),
        tables=tables,
        failed=failed,
        not_reached={suite: one["not_reached"] for suite, one in found.items() if one.get("not_reached")},
    )
    path = folder / "report.html"
    with atomic_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path
