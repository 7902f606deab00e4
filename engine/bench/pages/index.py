"""profiles/README.md from the files beside it: `python -m engine.bench.pages.index`.

What is measured, when, where, at which commit, by which command, and what is still to be taken.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.bench.instrument.record import PROFILES
from engine.runs.door import atomic_file

MOST_LINES = 8
"""Results of a file that are listed one by one; more are told in one line."""

HEAD = """# Measurements

One JSON a (machine, suite): `profiles/<machine>/<suite>.json`, with date, commit, command, versions and machine; in a
file of rows each row has its own. Contenders take turns in one process, the order turning by one each round; a ratio is
the median of the rounds' ratios, and its interval holds the true median with at least 95 % (order statistics, from six
rounds on). Rates belong to the machine of their file: compare ratios. A commit with `+` and a hash had changes that
were not committed. Of a suite's commands the shortest is shown; each row's own is in its file. This page is made by
`python -m engine.bench.pages.index`, which `launch/bench.py` runs at its end.
"""

TO_TAKE = (
    ("gpu", "machine", "all suites below within one budget, a table and a page", "make gpu-report BUDGET=25m"),
    (
        "gpu",
        "archs",
        "ten networks beside three peers each, and their floor",
        "python launch/bench.py --suite archs --budget 8m",
    ),
    ("gpu", "trainer", "trainer ÷ bare loop", "python launch/bench.py --suite trainer"),
    ("gpu", "loader", "decoding on the GPU ÷ torchvision", "python launch/bench.py --suite loader --photos FOLDER"),
    ("gpu", "kernels", "fused operators ÷ cuDNN, same bits twice, memcheck", "python launch/bench.py --suite kernels"),
    ("gpu", "memory", "predicted ÷ measured memory", "python launch/bench.py --suite memory"),
    ("gpu", "compile", "what torch.compile gains and costs", "python launch/bench.py --suite compile"),
    (
        "gpu",
        "accuracy",
        "10 epochs of CIFAR-10 at 224 px",
        "python launch/bench.py --suite accuracy --data CIFAR10_FOLDER",
    ),
    ("gpu", "baseline", "what `make bench` compares with", "python -m engine.bench.regress --runs 8"),
    ("cpu", "machine", "matrix and copy rates", "python launch/bench.py --suite machine"),
    ("cpu", "zoo", "ours ÷ torchvision's or timm's, every network", "python launch/bench.py --suite zoo"),
    ("cpu", "trainer", "trainer ÷ bare loop", "python launch/bench.py --suite trainer"),
    ("cpu", "loader", "DALI ÷ torchvision DataLoader", "python launch/bench.py --suite loader --photos FOLDER"),
    ("cpu", "startup", "launch to the first step", "python launch/bench.py --suite startup"),
    ("cpu", "baseline", "what `make bench` compares with", "python -m engine.bench.regress --runs 8"),
    (
        "cpu",
        "regressions",
        "planted slowdowns are caught, unchanged runs raise no alarm",
        "python tests/benchmarks/prove.py",
    ),
)
"""(kind of machine, suite, what, command): listed while no machine of the kind has the file."""
BESIDES = (
    ("gpu", "correctness: precisions, no hidden waits, resume, DALI's GPU graph, NVML", "make test-gpu"),
    (
        "gpu",
        "2 and more GPUs: DDP and ZeRO 1, 2, 3",
        "accelerate launch --config_file configs/accelerate/deepspeed_zero2.yaml --num_processes 2 launch/train.py",
    ),
)
"""What leaves no file that would show it."""


def index(profiles: Path = PROFILES) -> str:
    """The page as Markdown."""
    machines: dict[str, dict[str, dict[str, Any]]] = {}
    for path in sorted(profiles.glob("*/*.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(document, dict) and "suite" in document:
            machines.setdefault(path.parent.name, {})[path.stem] = document
    parts = [HEAD]
    for key, files in machines.items():
        about = next(iter(files.values()))["machine"]
        parts.append(f"## {key}: {about.get('gpu') or about.get('cpu')}, {about['cores']} cores\n")
        parts.append("| suite | what | result | when | commit |\n|---|---|---|---|---|")
        commands = []
        for suite, document in files.items():
            parts += [f"| `{suite}.json` | {' | '.join(line)} |" for line in lines_of(document)]
            told = {plain_command(command) for command in commands_of(document)}
            commands += [f"# {suite}\n{command}" for command in sorted(told, key=len)[:1]]
        parts.append("\n```bash\n" + "\n".join(commands) + "\n```\n")
    parts.append(still_to_take(machines))
    return "\n".join(parts)


def still_to_take(machines: dict[str, dict[str, dict[str, Any]]]) -> str:
    """The last section: files that no machine of their kind has."""
    have: dict[str, set[str]] = {"gpu": set(), "cpu": set()}
    for files in machines.values():
        for suite, document in files.items():
            have["gpu" if document["machine"].get("gpu") else "cpu"].add(suite)
    lines = [(kind, what, command) for kind, suite, what, command in TO_TAKE if suite not in have[kind]]
    table = "\n".join(f"| {kind.upper()} | {what} | `{command}` |" for kind, what, command in [*lines, *BESIDES])
    return f"## Still to be taken\n\n| on | what | command |\n|---|---|---|\n{table}\n"


def lines_of(document: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """(what, result, when, commit) of one file; a long one in one line."""
    found = list(_results(document))
    if len(found) <= MOST_LINES:
        yield from found
        return
    numbers = {what: float(number[0]) for what, result, *_ in found if (number := re.match(r"[\d.]+", result))}
    dates, commits = sorted({when for *_, when, _ in found if when}), sorted({commit for *_, commit in found})
    yield (
        f"{len(numbers) or len(found)} results",
        _judged(document) or _spread(numbers, found),
        dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}",
        commits[0] if len(commits) == 1 else f"{len(commits)} commits",
    )


def _judged(document: dict[str, Any]) -> str:
    """How many rows came out as they should, where rows say that."""
    right = [row["figures"]["right"] for row in document.get("rows", {}).values() if "right" in row.get("figures", {})]
    return f"{sum(right)} of {len(right)} as they should be" if right else ""


def _spread(numbers: dict[str, float], found: list[tuple[str, str, str, str]]) -> str:
    """Median and lowest of the numbers that results begin with, and how many begin with none."""
    others = len(found) - len(numbers)
    without = f"{others} without a figure" if others else ""
    if not numbers:
        return without
    lowest = min(numbers, key=numbers.__getitem__)
    unit = "" if "%" not in found[0][1] else " %"
    told = f"median {statistics.median(numbers.values()):.4g}{unit}, lowest {numbers[lowest]:.4g}{unit} ({lowest})"
    return f"{told}; {without}" if without else told


def _results(document: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    if "rows" not in document:
        for what, result in figures_of(document.get("figures", {})):
            yield what, result, str(document.get("date")), str(document.get("commit"))
        return
    for key, row in document["rows"].items():
        about = str(row["date"]), str(row["identity"]["commit"])
        if row["status"] != "measured":
            yield key, f"{row['status']}: {row.get('error') or row.get('reason')}", *about
            continue
        told = list(figures_of(row["figures"])) or [("", str(row["figures"].get("summary", "measured")))]
        for what, result in told[:3]:
            yield f"{key}: {what}" if what else key, result, *about


def figures_of(figures: dict[str, Any], where: str = "") -> Iterator[tuple[str, str]]:
    """(what, result) of nested figures: ratios, accuracies, medians of seconds."""
    ratio = figures.get("ratio", {})
    if "median" in ratio:
        yield where or "ours ÷ theirs", _interval(ratio)
    elif ratio:
        for name, one in ratio.items():
            yield _joined(where, name.replace(" / ", " ÷ ")), _interval(one)
    elif "best_val_accuracy" in figures:
        seconds = f" in {figures['seconds']:.0f} s" if "seconds" in figures else ""
        tested = f", {100 * figures['test_accuracy']:.2f} % test accuracy" if "test_accuracy" in figures else ""
        yield where, f"{100 * figures['best_val_accuracy']:.2f} % val accuracy{tested}{seconds}"
    elif "summary" in figures:
        yield where, str(figures["summary"])
    elif "runs" in figures and "wall" in figures["runs"]:
        yield _joined(where, "step ÷ reference"), f"{statistics.median(figures['runs']['wall']):.4f}"
    elif "median" in figures and "rounds" in figures:
        yield where, f"{figures['median']:g} s"
    else:
        for name, inner in figures.items():
            if isinstance(inner, dict):
                yield from figures_of(inner, _joined(where, name.replace("_", " ")))


def _joined(where: str, name: str) -> str:
    return f"{where}: {name}" if where else name


def _interval(ratio: dict[str, Any]) -> str:
    if "low" not in ratio:
        return f"{ratio['median']:.3f}"
    return f"{ratio['median']:.3f} ({ratio['low']:.3f}-{ratio['high']:.3f})"


def commands_of(document: dict[str, Any]) -> set[str]:
    """The command lines that made a file."""
    rows = document.get("rows", {"": document}).values()
    return {row["command"] for row in rows if row.get("command")}


def plain_command(command: str) -> str:
    """A command without the place of somebody's source tree."""
    command = re.sub(r"^python \S*/((?:engine|launch|tests)/)", r"python \1", command)
    module = re.match(r"^python (engine/\S+)\.py", command)
    return command.replace(module[0], f"python -m {module[1].replace('/', '.')}") if module else command


def write_index(profiles: Path = PROFILES) -> Path:
    """Write README.md into `profiles`; returns its path."""
    path = profiles / "README.md"
    with atomic_file(path) as temporary:
        temporary.write_text(index(profiles), encoding="utf-8")
    return path


if __name__ == "__main__":
    print(write_index())
