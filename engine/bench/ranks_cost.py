"""What checkpoints, ranks and launchers cost: `python -m engine.bench.ranks_cost` writes profiles/<machine>/ranks.json.

A row each, measured in turns; names after the command measure those alone, anew.

checkpoint     what one takes from training: the same steps with and without it, until it is on the disk
two processes  images/s of DistributedDataParallel on two cores over those of one process on one of them, at the same
               global batch, with a thread a process. Gradients are 45 MB a step for ResNet-18 whatever the image size:
               at 64 px two were 1.53 × one (at e4e74f9), at 128 px a step has four times the arithmetic
launchers      seconds from the command to the first step, over those of `python launch/train.py`
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from engine.bench.instrument.measure import Race, estimate
from engine.bench.instrument.record import Store
from engine.bench.suites.startup import LAUNCHERS, first_step_seconds
from engine.bench.suites.trainer_tax import epoch_rate, ready_trainer
from engine.recovery.relaunch import unused_port
from engine.runs.provenance import ROOT
from engine.runs.records import read_records

MINUTE = 60.0
MOST_STALL, LEAST_GAIN, MOST_SECONDS = 0.01, 1.7, 5.0
"""Limits: share of a minute that one checkpoint takes, two processes ÷ one, and what a launcher adds in seconds."""
WARMUP = 2
"""Steps of a run that do not count."""
FLAGS = (
    "--config",
    "configs/digits.yaml",
    "--optimizer",
    "sgd",
    "--lr",
    "0.05",
    "--precision",
    "fp32",
    "--no-compile",
    "--epochs",
    "1",
    "--log.every",
    "1",
)
QUIET = ("--log.no-plots", "--log.monitor-interval", "0", "--data.workers", "1", "--parallel.threads", "1")
SETTINGS: dict[str, dict[str, Any]] = {
    "checkpoint": {"arch": "resnet50", "batch_size": 32, "image_size": 64, "precision": "fp32", "steps": 8},
    "two processes": {
        "arch": "resnet18",
        "batch_size": 64,
        "image_size": 128,
        "flags": [*FLAGS, *QUIET, "--data.limit", "512"],
    },
    "launchers": {"arch": "resnet18", "image_size": 32},
}
ROUNDS = {"checkpoint": 9, "two processes": 6, "launchers": 6}


def checkpoint_cost(settings: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Seconds that training is longer for a checkpoint, those in which it stood, and those until it was written."""
    stood, written, extra = [], [], []
    with ready_trainer(**settings) as (trainer, *_):
        train = epoch_rate(trainer)
        trainer.folder.checkpoints.mkdir(exist_ok=True)

        def seconds(saves: bool) -> float:
            began = time.perf_counter()
            if saves:
                trainer.save()
                stood.append(time.perf_counter() - began)
            train()
            trainer.checkpointer.wait()  # what a block of steps was too short for counts as well
            return time.perf_counter() - began

        seconds(saves=False)
        seconds(saves=True)
        for number in range(rounds):
            order = (False, True) if number % 2 else (True, False)
            taken = {saves: seconds(saves) for saves in order}
            extra.append(taken[True] - taken[False])
            written.append(taken[True])
        size = sum(path.stat().st_size for path in trainer.checkpointer.last.rglob("*"))
    cost, stall = estimate(extra), statistics.median(stood[1:])
    return {
        "checkpoint_bytes": size,
        "stood_seconds": round(stall, 4),
        "extra_seconds": cost.as_dict(),
        "block_seconds": round(statistics.median(written), 3),
        "rounds": [round(one, 4) for one in extra],
        "share_of_a_minute": round(cost.median / MINUTE, 5),
        "summary": f"one a minute costs {cost.median / MINUTE:.2%}: {cost.median:.2f} s for {size / 2**20:.0f} MiB, "
        f"of which training stands {stall:.2f} s",
    }


def rate_of(ranks: int, cores: Sequence[int], settings: dict[str, Any]) -> float:
    """images/s of a run of so many processes, each on one of `cores`: the median of its steps after WARMUP.

    Raises RuntimeError with what a process said last where it fails.
    """
    shared = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(ranks)}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(unused_port())}
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        output = Path(scratch) / "run"
        command = [sys.executable, "launch/train.py", "--arch", settings["arch"], *settings["flags"]]
        command += ["--batch-size", str(settings["batch_size"]), "--image-size", str(settings["image_size"])]
        command += ["--output", str(output)]
        started = []
        for rank in range(ranks):
            log = stack.enter_context((Path(scratch) / f"rank{rank}.log").open("w+"))
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, **shared, **place},
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=partial(os.sched_setaffinity, 0, {cores[rank]}),
            )
            started.append((process, log))
        for process, log in started:
            if process.wait():
                log.seek(0)
                raise RuntimeError((log.read().strip().splitlines() or [f"exit code {process.returncode}"])[-1])
        steps = [row for row in read_records(output / "metrics.jsonl") if row["kind"] == "step"]
    return statistics.median(row["images_per_second"] for row in steps[WARMUP:])


def two_processes(settings: dict[str, Any], rounds: int) -> dict[str, Any]:
    """The comparison. Raises RuntimeError where this process may use one core only."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise RuntimeError("two processes need two cores")
    core = itertools.cycle(cores[:2])
    race = Race(
        {
            "two processes": lambda: rate_of(2, cores, settings),
            "one": lambda: rate_of(1, [next(core)], settings),
        }
    )
    for _ in range(rounds):
        race.round()
    if race.errors:
        raise RuntimeError(next(iter(race.errors.values())))
    return race.comparison().as_dict()


def launchers(settings: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Seconds to the first step by launcher, and what each adds to plain python's, a round each."""
    names = list(LAUNCHERS)
    taken: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            taken[name].append(first_step_seconds(settings["arch"], settings["image_size"], LAUNCHERS[name]))
    added = {
        name: estimate([ours - plain for ours, plain in zip(taken[name], taken["python"], strict=True)])
        for name in names
        if name != "python"
    }
    return {
        "seconds": {name: [round(one, 3) for one in each] for name, each in taken.items()},
        "added": {name: one.as_dict() for name, one in added.items()},
        "summary": ", ".join(f"{name} +{one.median:.2f} s" for name, one in added.items())
        + f" to {statistics.median(taken['python']):.2f} s",
    }


MEASURES: dict[str, Callable[[dict[str, Any], int], dict[str, Any]]] = {
    "checkpoint": checkpoint_cost,
    "two processes": two_processes,
    "launchers": launchers,
}


def beyond(name: str, figures: dict[str, Any]) -> str | None:
    """Which limit a row's figures break, in words."""
    if name == "checkpoint" and figures["share_of_a_minute"] > MOST_STALL:
        return f"a checkpoint a minute takes {figures['share_of_a_minute']:.2%} of training, at most {MOST_STALL:.0%}"
    if name == "two processes" and (gain := figures["ratio"]["two processes / one"]["median"]) < LEAST_GAIN:
        return f"two processes are {gain:.2f} × one, at least {LEAST_GAIN}"
    if name == "launchers":
        launcher, worst = max(figures["added"].items(), key=lambda each: each[1]["median"])
        if worst["median"] > MOST_SECONDS:
            return f"{launcher} adds {worst['median']:.1f} s to the first step, at most {MOST_SECONDS:g}"
    return None


def main(arguments: Sequence[str]) -> int:
    """Measure, write after each row; returns 1 where a limit is broken."""
    parser = argparse.ArgumentParser(description="Measure what checkpoints, ranks and launchers cost.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MEASURES)}")
    given = parser.parse_args(arguments)
    if unknown := [name for name in given.names if name not in MEASURES]:
        parser.error(f"{unknown[0]} is none of {', '.join(MEASURES)}")
    store, broken = Store("ranks"), []
    for name in given.names or list(MEASURES):
        began = time.perf_counter()
        settings = SETTINGS[name] | {"rounds": ROUNDS[name]}
        figures = MEASURES[name](SETTINGS[name], ROUNDS[name])
        store.put(name, settings, "measured", time.perf_counter() - began, {"figures": figures})
        found = figures.get("summary") or figures["ratio"]
        print(f"{name:<14} {found}", flush=True)
        broken += filter(None, [beyond(name, figures)])
    print(*broken, sep="\n")
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
