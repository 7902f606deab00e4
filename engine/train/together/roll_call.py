"""The roll call of a launch: before anything is built, all ranks are here, can go on, and mean the same run."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

from engine.config import ConfigError, ParallelConfig, RankError, RunConfig
from engine.data.fingerprint import fingerprint_of
from engine.data.sources.source import DataError, Source
from engine.runs.provenance import sources_digest, versions
from engine.step.launcher import complete_local_rank, launched_ranks
from engine.step.ranks.meeting import Meeting, facts_of


def attend(config: RunConfig, source: Source) -> Meeting | None:
    """Meet the other ranks; None where there are none.

    Raises ConfigError on all of them where they would not train the same run or one has no GPU of its own, RankError
    where they cannot meet.
    """
    if launched_ranks() == 1:
        return None
    meeting = Meeting(config.parallel.timeout)
    ranks = {"WORLD_SIZE": str(launched_ranks())}
    packages = versions() | {"Python": ".".join(platform.python_version_tuple()[:2])}
    try:
        own_gpu()
        problem = None
    except RankError as error:
        problem = str(error)
    meeting.call(ranks | facts_of(config, sources_digest(), packages, fingerprint_of(source).digest), problem)
    return meeting


def tell_all(problem: Exception) -> None:
    """Meet the other ranks where this one cannot go on; they may not know of it.

    Raises ConfigError on all of them, with the first one's problem; RankError where they cannot meet.
    """
    Meeting(ParallelConfig().timeout).call({}, str(problem))


@contextmanager
def all_or_none(meeting: Meeting | None, name: str) -> Iterator[None]:
    """What is built inside may fail on one machine alone: its disk is full, or lacks weights that others have.

    name  of this part, the same on all

    Raises ConfigError on all ranks then, in the same words, where the others would wait for that one.
    """
    try:
        yield
    except (ConfigError, DataError) as error:
        if meeting is not None:
            meeting.call({}, str(error), name=name)
        raise
    if meeting is not None:
        meeting.call({}, name=name)


def own_gpu() -> None:
    """Raise RankError where this machine has fewer GPUs than processes were started on it."""
    import torch

    from engine.step.plan import use_cuda

    found = torch.cuda.device_count() if use_cuda() else 0
    complete_local_rank(found)
    local = int(os.environ.get("LOCAL_RANK", 0))
    if found and local >= found:
        started = os.environ.get("LOCAL_WORLD_SIZE", str(local + 1))
        raise RankError(
            f"{started} processes were started on a machine with {found} GPU{'s' * (found > 1)}: each needs its own; "
            f"lower --num_processes (torchrun: --nproc_per_node) to {found}"
        )
