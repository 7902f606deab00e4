"""Plans against torch's real caching allocator: `python -m engine.bench.allocator_check`, on a card or an emulated one.

For each network and precision, at batch 128 × 224²: what a step requests without recompute, with block recompute and
under the chosen plans, predicted ÷ measured; and whether each plan that claims to fit a budget runs three steps in it,
the rest of the card being taken. Plans are made for a card without workspaces: on one that only emulates memory none
are taken, and there is nothing to hide a wrong margin behind. A row is written as soon as it is known; those that are
there are not made again.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState

import archs
from engine.bench.instrument.record import write_document
from engine.bench.suites.memory_rows import MadeBatch
from engine.config import DataConfig, ModelConfig, OptimConfig, PrecisionConfig, RunConfig
from engine.config.byte_sizes import GIB
from engine.plan.memory.cuda import Device
from engine.plan.memory.fake import on_meta
from engine.plan.memory.loader import Feed
from engine.plan.run_plan import plain_plan, to_plan, workload_of
from engine.plan.search import Search
from engine.plan.workload import Candidate, Result
from engine.runs.provenance import ROOT, commit, versions
from engine.step.device_memory.allocator_settings import choose_expandable
from engine.step.device_memory.out_of_memory import out_of_memory
from engine.step.optim import allocate_state, build_optimizer
from engine.step.optimizer_step import OptimizerStep
from engine.step.plan import Hardware, Plan
from engine.step.recompute import Policy, by_block, first_blocks
from engine.step.standing import Progress
from engine.step.wrap import AUTOCAST_DTYPES, Launch, build_accelerator, wrap

BATCH, IMAGE_SIZE, CLASSES, STEPS = 128, 224, 1000, 3
BUDGETS = (8, 12, 16, 24)
PRECISIONS = ("bf16", "fp32")
FIRST = ("efficientnet_b4", "resnext101_32x8d", "vgg19_bn", "resnext29_2x64d", "inceptionv3_fullres")
"""Networks whose plans did not fit before the allocator was replayed."""
CHEAPER = 2
"""Cheaper candidates that are tried where a plan is not the cheapest: would the real allocator have taken them?"""
OUTPUT = ROOT / "profiles" / "emulated-h100" / "memory.json"


@dataclass(frozen=True)
class Run:
    """What the real allocator said of some steps."""

    fits: bool
    requested: int
    """Bytes at the peak, as asked for."""
    allocated: int
    reserved: int
    retries: int
    """How often it gave back what was cached, to go on."""


@contextmanager
def rest_taken(budget: int) -> Iterator[None]:
    """Leave `budget` bytes of the card to this process, its context included; 0 leaves all."""
    _, total = torch.cuda.mem_get_info()
    version = (torch.version.cuda or "13").partition(".")[0]
    runtime, taken = ctypes.CDLL(f"libcudart.so.{version}"), ctypes.c_void_p()
    if budget:
        error = runtime.cudaMalloc(ctypes.byref(taken), ctypes.c_size_t(total - budget))
        assert error == 0, f"cudaMalloc of the rest: error {error}"
    try:
        yield
    finally:
        runtime.cudaFree(taken)


def run_steps(config: RunConfig, plan: Plan, budget: int = 0) -> Run:
    """STEPS steps as the trainer takes them, of a network whose weights are whatever the memory holds."""
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()
    gc.collect()
    torch.cuda.empty_cache()
    held = torch.cuda.memory_allocated()
    assert held < 1 << 20, f"{held} bytes are left of an earlier run"
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_stats()["num_alloc_retries"]
    with rest_taken(budget):
        try:
            _steps(config, plan)
            fits = True
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            fits = False
        gc.collect()
        figures = torch.cuda.memory_stats()
        torch.cuda.empty_cache()
    peaks = [figures[f"{name}_bytes.all.peak"] for name in ("requested", "allocated", "reserved")]
    return Run(fits, *peaks, figures["num_alloc_retries"] - before)


def _steps(config: RunConfig, plan: Plan) -> None:
    device, share, size = torch.device("cuda"), plan.global_batch_size, config.data.image_size
    model = on_meta(partial(archs.build, config.model.arch, CLASSES, image_size=size)).to_empty(device=device)
    optimizer = build_optimizer(model, config.optim)
    accelerator = build_accelerator(plan, Launch(0, 0, 1, None), config.optim)
    model, optimizer = wrap(model, optimizer, plan, accelerator)
    model.train()
    step = OptimizerStep(config.optim, plan, accelerator, model, optimizer, Progress(), 1000)
    allocate_state(optimizer)
    batch = None
    for _ in range(STEPS):
        images = torch.empty(share, size, size, 3, device=device)  # as DALI's batches come (output_to_torch)
        images = images.to(AUTOCAST_DTYPES[plan.precision]).permute(0, 3, 1, 2)
        labels = torch.zeros(share, dtype=torch.int64, device=device)
        batch = MadeBatch(images, labels, torch.ones(share, device=device), share, share)
        del images
        step.take(batch)
    accelerator.free_memory()


def requested(search: Search, found: Candidate) -> int:
    """Bytes that a step is predicted to ask for at its peak, not rounded."""
    trace = search._recorded(found.precision, found.policy, found.micro, found.accumulation)
    size, _ = trace.bytes_at(found.micro, search.workload.share)
    return int((trace.sign * size[trace.storage]).cumsum()[trace.start :].max())


class Check:
    """One network in one precision."""

    def __init__(self, arch: str, precision: str) -> None:
        size = max(IMAGE_SIZE, archs.lookup(arch).minimum_size)
        self.config = RunConfig(
            model=ModelConfig(arch=arch, compile="off"),
            data=DataConfig(image_size=size),
            optim=OptimConfig(batch_size=BATCH),
            precision=PrecisionConfig(precision),  # type: ignore[arg-type]
        )
        self.precision = precision
        build = partial(archs.build, arch, CLASSES, image_size=size)
        device = Device(cublas=0, workspaces=False)
        self.search = Search(workload_of(self.config, build, CLASSES, device=device, feed=Feed("none")), [precision])
        self.plain = plain_plan(self.config, on_meta(build), Hardware.detect(), 1, 0)
        self.runs: dict[tuple, Run] = {}

    def row(self) -> dict:
        """All figures."""
        row: dict = {"arch": self.config.model.arch, "precision": self.precision, "batch_size": BATCH}
        row |= {"image_size": self.config.data.image_size, "steps": STEPS, "commit": commit()}
        policies = {"none": Policy()} | ({"block": by_block(self.search.units)} if self.search.units else {})
        row["peaks"] = {name: self.peak(policy) for name, policy in policies.items()}
        row["budgets"] = {str(budget): self.budget(budget * GIB) for budget in BUDGETS}
        return row

    def peak(self, policy: Policy) -> dict:
        """What one policy requests, the whole batch at once, on the whole card."""
        self.search.within = 1  # not replayed: it need not fit anything
        found = self.search.candidate(self.precision, policy, 1, 0)
        result = Result(self.search.workload, 0, 0, [found], found, None, self.search.normalised)
        run = run_steps(self.config, to_plan(self.plain, result, found))
        return self._compared(found, run)

    def _compared(self, found: Candidate, run: Run) -> dict:
        predicted = requested(self.search, found)
        ratio = round(predicted / run.requested, 4) if run.fits else None
        return {"predicted_bytes": predicted, "measured_bytes": run.requested, "predicted_over_measured": ratio}

    def budget(self, budget: int) -> dict:
        """The plan for a budget, run in it."""
        result = self.search.run(budget)
        if result.chosen is None:
            assert result.least is not None
            return {"claims": False, "least_bytes": result.least.peak}
        chosen = result.chosen
        run = self.run_in(result, chosen, budget)
        found = {
            "claims": True,
            "recompute": chosen.policy.describe(),
            "micro_batch_size": chosen.micro,
            "accumulation": chosen.accumulation,
            "predicted_peak_bytes": chosen.peak,
            "predicted_allocated_bytes": chosen.allocated,
            **asdict(run),
            **self._compared(chosen, run),
        }
        return found | self.cheaper(result, chosen, budget)

    def run_in(self, result: Result, candidate: Candidate, budget: int) -> Run:
        """Steps in a budget; a run that never met its limit is the same in a larger one."""
        key = candidate.policy, candidate.micro, candidate.accumulation
        known = self.runs.get(key)
        if known is None or not known.fits or known.retries:
            self.runs[key] = run_steps(self.config, to_plan(self.plain, result, candidate), budget)
        return self.runs[key]

    def cheaper(self, result: Result, chosen: Candidate, budget: int) -> dict:
        """What a search over the real allocator would have taken instead, and by what that costs less."""
        room = budget - result.workload.device.context
        others = [one for one in (*self.neighbours(chosen, result.cap), *result.candidates) if one.order < chosen.order]
        others = sorted((one for one in others if one.allocated <= room), key=lambda one: one.order)
        for one in others[:CHEAPER]:
            if self.run_in(result, one, budget).fits:
                cost = round(chosen.seconds / one.seconds, 4)
                return {"real_search": one.policy.describe(), "cost_over_real_search": cost}
        return {"cost_over_real_search": 1.0}

    def neighbours(self, chosen: Candidate, cap: int) -> Iterator[Candidate]:
        """One block less to recompute, and one micro-batch less."""
        self.search.within = 1
        count = len(chosen.policy.segments)
        if chosen.policy.kind in ("first", "block") and count > 1 and not chosen.policy.offload:
            yield self.search.candidate(self.precision, first_blocks(count - 1), chosen.accumulation, cap)
        larger = [each for each in (1, *self.search.accumulations()) if each < chosen.accumulation]
        if larger:
            yield self.search.candidate(self.precision, chosen.policy, larger[-1], cap)


def summary(rows: list[dict]) -> dict:
    """What the rows are held to."""
    peaks = [one for row in rows for one in (*row["peaks"].values(), *row["budgets"].values())]
    ratios = np.array([one["predicted_over_measured"] for one in peaks if one.get("predicted_over_measured")])
    claims = [one for row in rows for one in row["budgets"].values() if one["claims"]]
    costs = [one["cost_over_real_search"] for one in claims]
    return {
        "rows": len(rows),
        "ratios": len(ratios),
        "lowest_ratio": float(ratios.min()) if len(ratios) else None,
        "highest_ratio": float(ratios.max()) if len(ratios) else None,
        "claims": len(claims),
        "ran": sum(one["fits"] for one in claims),
        "mean_cost_over_real_search": round(float(np.mean(costs)), 4) if costs else None,
    }


def write(rows: list[dict], output: Path) -> None:
    """The file, whole."""
    about = {
        "what": "plans on an emulated H100: torch's real caching allocator, arithmetic left out, no cuDNN workspaces",
        "command": shlex.join(["python", "-m", "engine.bench.allocator_check", *sys.argv[1:]]),
        "versions": versions(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    write_document(output, about | {"summary": summary(rows), "rows": rows})


def jobs(networks: list[str], precisions: list[str]) -> Iterator[tuple[str, str]]:
    """The networks that ran out before come first."""
    names = networks or sorted(archs.names(), key=lambda name: (name not in FIRST, name))
    for precision in precisions:
        for name in names:
            yield name, precision


def main() -> None:
    """Make the rows that are missing, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*")
    parser.add_argument("--precision", nargs="*", default=list(PRECISIONS), choices=PRECISIONS)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--limit", type=float, default=900, help="seconds a row may take")
    parser.add_argument("--row", action="store_true", help="print one network's row and end")
    options = parser.parse_args()
    if options.row:
        choose_expandable()
        print(json.dumps(Check(options.networks[0], options.precision[0]).row()))
        return
    for name, precision in jobs(options.networks, options.precision):
        rows = json.loads(options.output.read_text("utf-8"))["rows"] if options.output.exists() else []
        if any((row["arch"], row["precision"]) == (name, precision) for row in rows):
            continue
        began = time.perf_counter()
        command = [sys.executable, "-m", "engine.bench.allocator_check", name, "--precision", precision, "--row"]
        try:
            # an emulated card of its own: processes of one machine share a card, and its memory
            environment = {"EMULATED_GPU_MACHINE": "allocator_check"} | os.environ
            done = subprocess.run(command, capture_output=True, text=True, timeout=options.limit, env=environment)
        except subprocess.TimeoutExpired:
            print(f"{name} {precision}: longer than {options.limit:.0f} s", flush=True)
            continue
        if done.returncode:
            print(f"{name} {precision}: {done.stderr.strip().splitlines()[-1]}", flush=True)
            continue
        row = json.loads(done.stdout.strip().splitlines()[-1])
        write([*rows, row], options.output)
        cells = [f"{b}: {_short(one)}" for b, one in row["budgets"].items()]
        print(f"{name} {precision}: {', '.join(cells)} ({time.perf_counter() - began:.0f} s)", flush=True)


def _short(one: dict) -> str:
    if not one["claims"]:
        return "no plan"
    split = f" ÷{one['accumulation']}" if one["accumulation"] > 1 else ""
    how = "no recompute" if one["recompute"] == "none" else one["recompute"]
    return f"{how}{split} {'fits' if one['fits'] else 'OUT OF MEMORY'}"


if __name__ == "__main__":
    main()
