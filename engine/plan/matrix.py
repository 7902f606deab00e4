"""Every network × 8-80 GiB × precision: which plan trains it at batch 128, and what that costs."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path

import archs
from engine.config import require
from engine.config.byte_sizes import GIB
from engine.config.pixels.image_size import at_least
from engine.plan.memory.simulate import Untraceable
from engine.plan.request import PlanConfig, builder, output_folder
from engine.plan.run_plan import workload_of
from engine.plan.search import Search
from engine.plan.workload import Result
from engine.runs.door import atomic_file
from engine.step.plan import split_batch

BUDGETS = (8, 12, 16, 24, 80)
"""GiB of the cards people have."""
PRECISIONS = ("fp32", "fp16", "bf16")
WITHOUT_EFFECT = ("gpu_memory", "precision", "recompute", "offload", "micro_batch_size", "zero_stage")
WITHOUT_EFFECT += ("offload_optimizer", "compile", "explain")
"""Fields of a plan that a matrix does not read."""
MATRIX = Path("profiles") / "plan" / "plan-matrix.json"
"""The whole zoo's, as it was last planned."""


def network_rows(options: PlanConfig, name: str) -> list[dict]:
    """The plans of one network, a row a precision and budget."""
    info = archs.lookup(name)
    size = at_least(options.image_size, info.minimum_size)
    options = replace(options, arch=info.name, image_size=size)
    config = options.run_config()
    workload = workload_of(config, builder(config, options.num_classes), options.num_classes, ranks=int(options.gpus))
    search = Search(workload, PRECISIONS)
    rows = []
    for precision in PRECISIONS:
        search.precisions = (precision,)
        for budget in BUDGETS:
            row = {"arch": info.name, "image_size": size, "precision": precision, "gpu_memory_gib": budget}
            try:
                rows.append(row | figures(search.run(budget * GIB)))
            except Untraceable as error:
                return [row | {"error": str(error)}]
    return rows


def figures(result: Result) -> dict:
    """One cell of the matrix."""
    chosen = result.chosen
    if chosen is None:
        assert result.least is not None
        return {"fits": False, "least_gib": round(result.least.peak / GIB, 2)}
    plain = next((one for one in result.candidates if one.plain), chosen)
    return {
        "fits": True,
        "exact": not chosen.changes,
        "micro_batch_size": chosen.micro,
        "accumulation": chosen.accumulation,
        "recompute": chosen.policy.describe(),
        "predicted_gib": round(chosen.peak / GIB, 2),
        "cost": round(chosen.seconds / plain.seconds, 2),
    }


def short(row: dict) -> str:
    """A cell in a few signs: ✓, R recompute, N nested, ÷4 micro-batches, H host, – none."""
    if "error" in row:
        return "?"
    if not row["fits"]:
        return f"– ({row['least_gib']})"
    recompute = row["recompute"]
    parts = [] if recompute.startswith("none") else ["N" if "nested" in recompute else "R"]
    parts += [f"÷{row['accumulation']}"] if row["accumulation"] > 1 else []
    parts += ["H"] if "offload" in recompute else []
    text = " ".join(parts) or "✓"
    return text if row["exact"] else f"*{text}*"


LEGEND = (
    "✓ as it is · R some forward passes run again · N nested, twice again · ÷n in n micro-batches · H activations in "
    "host memory · *italic*: BatchNorm sees a micro-batch, which changes the function · – no plan (what would do, "
    "in GiB)"
)


def markdown(rows: list[dict], precision: str) -> str:
    """One precision's table: a network a line, a budget a column."""
    mine = [row for row in rows if row.get("precision") == precision]
    lines = ["| network | " + " | ".join(f"{budget} GiB" for budget in BUDGETS) + " |", "|---" * 6 + "|"]
    for name in dict.fromkeys(row["arch"] for row in mine):
        cells = {row["gpu_memory_gib"]: short(row) for row in mine if row["arch"] == name}
        lines.append(f"| `{name}` | " + " | ".join(cells.get(budget, "?") for budget in BUDGETS) + " |")
    return "\n".join(lines)


def brief(rows: list[dict], precision: str) -> str:
    """One precision's table without the networks that train as they are in every budget, which a line counts."""
    mine = [row for row in rows if row.get("precision") == precision]
    busy = {row["arch"] for row in mine if short(row) != "✓"}
    others = len({row["arch"] for row in mine} - busy)
    table = markdown([row for row in mine if row["arch"] in busy], precision)
    return f"{table}\n\nThe other {others} networks train as they are (✓) in each of these. {LEGEND}"


def document(rows: list[dict], options: PlanConfig, command: str) -> str:
    """The whole matrix as Markdown."""
    parts = [
        f"# What trains in which memory: batch {options.batch_size}, {options.image_size} px, {options.optimizer}",
        "Predicted, not measured: see `engine/plan/memory/cuda.py` for what is assumed of a GPU. Made by\n\n"
        f"```bash\n{command}\n```",
        LEGEND,
    ]
    parts += [f"## {precision}\n\n{markdown(rows, precision)}" for precision in PRECISIONS]
    return "\n\n".join(parts) + "\n"


def _work(job: tuple[PlanConfig, str]) -> list[dict]:
    import torch

    torch.set_num_threads(1)
    gc.enable()  # launch/plan.py plans one network without
    gc.freeze()  # what is imported stays, and no collection has to walk it
    return network_rows(*job)


def run_matrix(options: PlanConfig) -> int:
    """Plan the zoo (or the networks of --arch A,B,C), print the tables, write plan-matrix.json and .md."""
    from engine.runs.provenance import commit, versions

    idle = [name for name in WITHOUT_EFFECT if getattr(options, name) != getattr(PlanConfig, name)]
    require(not idle, f"--matrix plans all of its own: {', '.join(idle).replace('_', '-')} would have no effect on it")
    split_batch(options.batch_size, int(options.gpus), 0)
    folder = output_folder(options, "plan-matrix")
    names = options.arch.split(",") if options.arch else archs.names()
    for name in names:
        try:
            archs.lookup(name)
        except archs.UnknownArch as error:
            require(False, str(error))
    began = time.perf_counter()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = min(options.processes or cores, len(names))
    jobs = [(options, name) for name in names]
    rows: list[dict] = []
    if processes == 1:
        rows = [row for job in jobs for row in _work(job)]
    else:
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            for found in pool.imap(_work, jobs):
                rows += found
    seconds = time.perf_counter() - began
    command = shlex.join(["python", *sys.argv])
    for precision in PRECISIONS:
        print(f"{precision}\n{markdown(rows, precision)}\n")
    print(LEGEND)
    folder.mkdir(parents=True, exist_ok=True)
    written = {
        "command": command,
        "commit": commit(),
        "versions": versions(),
        "batch_size": options.batch_size,
        "optimizer": options.optimizer,
        "seconds": round(seconds, 1),
        "processes": processes,
        "rows": rows,
    }
    for name, text in (
        ("plan-matrix.json", json.dumps(written, indent=1, ensure_ascii=False) + "\n"),
        ("plan-matrix.md", document(rows, options, command)),
    ):
        with atomic_file(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    print(f"{len(names)} networks in {seconds:.0f} s; written to {folder / 'plan-matrix.json'} and plan-matrix.md")
    return 0
