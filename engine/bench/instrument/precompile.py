"""Compile the networks of a suite ahead, several at a time, so that a budget goes into measuring.

torch.compile keeps what it generates in a cache on disk (FX graph cache, AOTAutograd cache, Triton's). One process
compiles one network on one core most of the time; here as many processes as memory and cores allow each take one step
of one contender, and the suite's own process then loads from the cache. `first_step_seconds` of these processes is the
wait that a person has without a cache, less what they take from each other.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch._inductor.config

from engine.bench.instrument.bare_loop import DTYPES
from engine.bench.instrument.counts import counted_saved
from engine.bench.instrument.sides import Side, contender
from engine.bench.instrument.workers import Worker
from engine.step.plan import Hardware

CORES_EACH = 3
SHARE_OF_MEMORY = 0.85
BESIDES = 1.5
"""What a training step takes ÷ what it keeps for the backward pass: gradients of activations and workspace."""
CONTEXT = 2**30
"""Bytes of a CUDA context with its libraries."""


@dataclass(frozen=True)
class Job:
    """One network in one loop, to be compiled by a process of its own."""

    name: str
    side: Side
    mode: str
    batch_size: int
    image_size: int
    bytes: float
    """Of GPU memory that it is expected to take."""


def fill_cache(
    listed: list[dict[str, Any]], sides: Callable[[dict[str, Any]], dict[str, Side]], most: float, deadline: float
) -> dict[str, Any]:
    """Compile every compiled contender of the rows with the settings `listed`; returns seconds by contender.

    One that fails is told and left to the row itself. What has not ended after `most` seconds, or at `deadline`, is
    ended and told: the row compiles it then.
    """
    deadline = min(deadline, time.monotonic() + most)
    jobs = [job for settings in listed for job in jobs_of(settings, sides(settings))]
    cuda = Hardware.detect().type == "cuda"
    memory = SHARE_OF_MEMORY * torch.cuda.mem_get_info()[0] if cuda else float("inf")
    at_once = max(1, (os.cpu_count() or 1) // CORES_EACH)
    began, running, told = time.monotonic(), {}, {}
    waiting = sorted(jobs, key=lambda job: job.bytes)
    while waiting or running:
        taken = sum(job.bytes for job in running.values())
        fitting = [job for job in waiting if not running or taken + job.bytes <= memory]
        if fitting and len(running) < at_once and time.monotonic() < deadline:
            job = fitting[-1]  # the largest that fits: the rest packs around it
            waiting.remove(job)
            running[start(job, at_once)] = job
            continue
        if not running:
            break
        for worker in [one for one in running if one.ended()]:
            told[running.pop(worker).name] = worker.result()
        if time.monotonic() > deadline:
            for worker, job in running.items():
                worker.end()
                told[job.name] = {"error": "had not ended within its share of the budget"}
            running.clear()
        time.sleep(0.05)
    seconds = time.monotonic() - began
    return {
        "seconds": round(seconds, 1),
        "jobs": told,
        "not_begun": [job.name for job in waiting],
        "summary": f"{len(told)} networks compiled in {seconds:.0f} s, {at_once} at a time",
    }


def jobs_of(settings: dict[str, Any], sides: dict[str, Side]) -> list[Job]:
    """The compiled contenders of a row."""
    batch, size = settings["batch_size"], settings["image_size"]
    jobs = []
    for name, side in sides.items():
        if side.compile:
            kept = counted_saved(side, size, DTYPES[settings["precision"]]).at(batch)
            label = f"{settings['arch']} {settings['mode']}: {name}"
            jobs.append(Job(label, side, settings["mode"], batch, size, BESIDES * kept + CONTEXT))
    return jobs


def start(job: Job, at_once: int) -> Worker:
    """A process that compiles `job`. What it finds to be fastest, beside the others, is not kept: kernels are."""
    described = {
        "side": job.side.stated(),
        "mode": job.mode,
        "batch_size": job.batch_size,
        "image_size": job.image_size,
    }
    environment = {"TORCHINDUCTOR_COMPILE_THREADS": str(max(1, (os.cpu_count() or 1) // at_once))}
    return Worker("engine.bench.instrument.precompile", described, environment)


def main() -> None:
    """Compile the contender that the first argument describes as JSON; prints the seconds of its first step."""
    given = json.loads(sys.argv[1])
    torch._inductor.config.autotune_local_cache = False  # what is fastest is found where nothing else runs
    device = torch.device(Hardware.detect().type)
    steps = contender(
        Side(**given["side"]), given["mode"], given["batch_size"], given["image_size"], device, 0.0, warmup=1
    )
    steps()
    print(json.dumps(steps.facts()))


if __name__ == "__main__":
    main()
