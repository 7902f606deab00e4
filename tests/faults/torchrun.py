"""torchrun and its ranks, forked from a process that has imported everything: a launch takes about a second.

torchrun itself is torch's, with its agent, store, rendezvous, signals and restarts; only what it executes is replaced:
a rank is forked from it where it would have started Python anew. Parents, sessions and exit codes are the real ones.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from tests.faults.trial import Child, forked, train_forked

ROOT = Path(__file__).resolve().parents[2]
RANKS = 2
ALONE = ("--standalone", "--nproc_per_node", str(RANKS))
"""torchrun's flags for all ranks on this machine."""
BARRIER = 30.0
"""Seconds that torchrun, its ranks having ended well, waits for another host's, in place of torch's 300."""
Before = Callable[[int], None]
"""Called in each rank with its number, before it trains."""


class ForkedRank(subprocess.Popen):
    """What torchrun takes for a process that it started: a fork of itself that trains."""

    def __init__(self, flags: list[str], environment: Mapping[str, str], before: Before, log: Path) -> None:
        self.args, self.returncode, self._child_created = flags, None, True
        self._waitpid_lock, self._sigint_wait_secs, self._communication_started = threading.Lock(), 0.0, False
        self.stdin = self.stdout = self.stderr = None
        rank = int(environment["RANK"])
        self.pid = forked(lambda: train_forked(flags, lambda: before(rank)), environment=environment)
        with pids_of(log).open("a") as file:
            file.write(f"{self.pid}\n")


def pids_of(log: Path) -> Path:
    """Where the numbers of a launch's ranks are noted, restarted ones too."""
    return log.with_suffix(".ranks")


def ranks_of(log: Path) -> list[psutil.Process]:
    """The ranks that are there."""
    found = []
    for pid in pids_of(log).read_text().split() if pids_of(log).exists() else ():
        with suppress(psutil.Error):
            one = psutil.Process(int(pid))
            if one.status() != psutil.STATUS_ZOMBIE:
                found.append(one)
    return found


def torchrun(
    flags: list[str],
    log: Path,
    *launcher: str,
    before: Before = lambda rank: None,
    environment: Mapping[str, str] | None = None,
    place: tuple[str, ...] = ALONE,
    entered: Callable[[], None] = lambda: None,
) -> Child:
    """Start launch/train.py's run with these flags on two ranks, or where `place` says; `entered` is called first."""

    def launch() -> int:
        entered()
        from torch.distributed.elastic.agent.server.api import SimpleElasticAgent
        from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler
        from torch.distributed.run import main

        def popen(self: object, args: tuple, env: dict[str, str]) -> ForkedRank:
            return ForkedRank(flags, env, before, log)

        subprocess_handler.SubprocessHandler._popen = popen  # type: ignore[method-assign]
        leave = SimpleElasticAgent._exit_barrier

        def leave_soon(self: SimpleElasticAgent) -> None:
            self._exit_barrier_timeout = BARRIER
            leave(self)

        SimpleElasticAgent._exit_barrier = leave_soon  # type: ignore[method-assign]
        try:
            main([*place, *launcher, "launch/train.py", *flags])
        except SystemExit as ended:
            return ended.code if isinstance(ended.code, int) else 1
        except Exception as error:  # ChildFailedError: torchrun's own report of ranks that failed
            codes = [failure.exitcode for failure in getattr(error, "failures", {}).values()]
            print(f"torchrun: {type(error).__name__} {codes}", file=sys.stderr)
            return 1
        return 0

    pids_of(log).unlink(missing_ok=True)
    wanted = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"} | dict(environment or {})
    return Child(forked(launch, log, os.environ | wanted), log)


def static_ranks(flags: list[str], log: Path, port: int, before: Before = lambda rank: None) -> list[Child]:
    """Two ranks without a launcher, as a cluster's manager starts them: the first one holds the store."""
    found = []
    for rank in range(RANKS):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS)}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
        own = log.with_name(f"{log.stem}-{rank}.log")
        work = lambda rank=rank: train_forked(flags, lambda: before(rank))  # noqa: E731
        found.append(Child(forked(work, own, os.environ | place), own))
    return found
