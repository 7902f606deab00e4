"""Faults of two hosts with one rank each: one that dies, one whose launcher dies, one whose disk is full.

Hosts are namespaces of network, mounts and name on this machine, with a cable between them and the run folder on a disk
that both share. Each run is compared with an undisturbed one of two ranks on one host, bit for bit.
"""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults.over_ranks import ENVIRONMENTS, Launches, steps, until
from tests.faults.torchrun import Before, ranks_of, torchrun
from tests.faults.trial import Bench, Child, Wrong, compare, refuse_strays
from tests.launch.ranks import free_port
from tests.launch.two_hosts import ADDRESSES, CABLES, Hosts, pids

SECONDS = 480
"""Of a launch, on a busy machine."""
PATIENCE = 15
"""--parallel.timeout of a run that is disturbed, in seconds."""
FLAGS = ("--parallel.timeout", str(PATIENCE))
PAGE = 4096
LIBC = ctypes.CDLL(None, use_errno=True)
NEW_MOUNTS, NEW_NAME, NEW_NETWORK = 0x00020000, 0x04000000, 0x40000000  # linux/sched.h
BIND, ALL_BELOW, PRIVATE = 1 << 12, 1 << 14, 1 << 18  # linux/mount.h


def why_not() -> str:
    """Why there can be no hosts here; empty where there can."""
    if os.name != "posix" or os.geteuid():
        return "hosts are network namespaces, which need root"
    return "" if shutil.which("ip") else "hosts need ip (Debian: iproute2)"


def called(result: int) -> None:
    """Raise OSError where a system call failed."""
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def mount(source: str, target: str | Path, kind: str = "none", flags: int = 0, options: str = "") -> None:
    """mount(2)."""
    called(LIBC.mount(source.encode(), os.fsencode(target), kind.encode(), flags, options.encode()))


def enter(name: str) -> None:
    """Let this process be on a host from now on, under its name; its mounts are its own."""
    with Path("/run/netns", name).open() as network:
        called(LIBC.setns(network.fileno(), NEW_NETWORK))
    called(LIBC.unshare(NEW_MOUNTS | NEW_NAME))
    mount("none", "/", flags=ALL_BELOW | PRIVATE)
    mount(f"/etc/netns/{name}/hosts", "/etc/hosts", flags=BIND)
    socket.sethostname(name)


class HostLaunches:
    """Launches of a rank on each of two hosts."""

    def __init__(self, launches: Launches, hosts: Hosts) -> None:
        self.launches, self.names = launches, hosts.names
        self.run, self.bench = launches.run, launches.bench
        self.logs = [self.bench.folder / f"host-{place}.log" for place in (0, 1)]

    def start(
        self,
        *more: str,
        before: Before = lambda rank: None,
        entered: Callable[[int], None] = lambda host: None,
        environment: dict[str, str] | None = None,
    ) -> list[Child]:
        """torchrun on both, to begin the run or to go on with it; `entered` is called on each host first."""
        flags, port = [*self.launches.flags(self.run), *more], str(free_port())
        children = []
        for host, (name, log) in enumerate(zip(self.names, self.logs, strict=True)):

            def on_host(name: str = name, host: int = host) -> None:
                enter(name)
                entered(host)

            place = ("--nnodes", "2", "--node-rank", str(host), "--nproc_per_node", "1")
            place += ("--master-addr", ADDRESSES[0], "--master-port", port)
            known = ENVIRONMENTS[self.launches.way] | {"GLOO_SOCKET_IFNAME": CABLES[host]} | (environment or {})
            children.append(torchrun(flags, log, place=place, before=before, environment=known, entered=on_host))
        return children

    def said(self, host: int) -> str:
        """What is in a host's log."""
        return self.logs[host].read_text(errors="replace")

    def refuse_left(self, seconds: float = 90.0) -> None:
        """Raise Wrong for processes that are still on a host after a while."""
        deadline = time.monotonic() + seconds
        while left := [pid for name in self.names for pid in pids(name)]:
            if time.monotonic() > deadline:
                for pid in left:
                    os.kill(pid, signal.SIGKILL)
                raise Wrong(f"{len(left)} processes are left on the hosts: {self.said(0)[-300:]} {self.said(1)[-300:]}")
            time.sleep(0.02)

    def finish(self, **more: dict[str, str]) -> None:
        """Go on with the run, or begin it where nothing was written, on both hosts, and compare. Raises Wrong."""
        # torchrun itself shows a traceback, and ends with 0, where that of the other host leaves first with the store
        codes = [child.wait(SECONDS, frames=True)[0] for child in self.start(**more)]
        if codes != [0, 0]:
            raise Wrong(f"going on ends with {codes}: {self.said(0)[-500:]} {self.said(1)[-300:]}")
        compare(self.run, self.launches.weights, self.launches.rows)

    def had_ended(self) -> str:
        """The outcome where the fault came after the last step: nothing is missing. Raises Wrong."""
        compare(self.run, self.launches.weights, self.launches.rows)
        return "had ended"

    def wait_for_a_moment(self, children: list[Child], chance: random.Random) -> None:
        """In start-up, from when both ranks are there, or at a step."""
        until(lambda: all(ranks_of(log) for log in self.logs), children[0], "the ranks did not start")
        if chance.random() < 0.5:
            time.sleep(chance.uniform(0, self.bench.seconds))
        else:
            at = chance.randrange(1, 8)
            until(lambda: steps(self.run) >= at, children[0], f"step {at} was not reached")


@contextmanager
def two_hosts(bench: Bench, way: str = "ddp") -> Iterator[HostLaunches]:
    """Hosts with names of this process's own, and launches on them into a fresh run folder."""
    launches = Launches(bench, way)
    launches.fresh()
    hosts = Hosts([f"hcr-{os.getpid()}-{letter}" for letter in "ab"])
    try:
        yield HostLaunches(launches, hosts)
    finally:
        hosts.close()


def kill_host(bench: Bench, chance: random.Random) -> str:
    """SIGKILL of all processes of one of two hosts, at once: the other names it and ends within the time-out."""
    with two_hosts(bench) as on:
        victim = chance.randrange(2)
        children = on.start(*FLAGS)
        on.wait_for_a_moment(children, chance)
        for pid in pids(on.names[victim]):
            os.kill(pid, signal.SIGKILL)
        children[victim].wait(SECONDS, frames=True)
        code, said = children[1 - victim].wait(SECONDS, frames=True)
        on.refuse_left()
        if not code:
            return on.had_ended()
        if not named(said, victim, on.names[victim]):
            raise Wrong(f"exit {code}, and {on.names[victim]} is not named: {said[-900:]}")
        on.finish()
    return "named, ended, went on"


def named(said: str, rank: int, name: str) -> bool:
    """Whether a host says which one has gone; before ranks have met it can but say where nobody answered."""
    before = (
        "no answer from the first",
        "no first process",
        "lost the first one while ranks met",
        f"missing: rank {rank}",
    )
    return f"on {name}" in said or any(words in said for words in before)


def kill_launcher_of_host(bench: Bench, chance: random.Random) -> str:
    """SIGKILL of the launcher of one of two hosts: its rank does not live on, and the other host ends too."""
    with two_hosts(bench) as on:
        victim = chance.randrange(2)
        children = on.start(*FLAGS)
        on.wait_for_a_moment(children, chance)
        children[victim].signal(signal.SIGKILL)
        children[victim].wait(SECONDS, frames=True)
        code, _ = children[1 - victim].wait(SECONDS, frames=True)
        on.refuse_left()
        if not code:
            return on.had_ended()
        on.finish()
    return "ended, went on"


def full_disk_of_host(bench: Bench, chance: random.Random) -> str:
    """A tmpfs of a few pages in one host's mount namespace: for decoded images, or where it writes a checkpoint."""
    return chance.choice((full_cache, full_save))(bench, chance)


def full_cache(bench: Bench, chance: random.Random) -> str:
    """The disk for decoded images is too small on one host: both end with 2 before the run begins; then it has room."""
    cache, victim, room = bench.folder / "cache", chance.randrange(2), PAGE * chance.randrange(1, 20)
    shutil.rmtree(cache, ignore_errors=True)
    cache.mkdir()

    def small(host: int) -> None:
        # each host has a cache of its own, one of them a small one
        mount("tmpfs", cache, "tmpfs", options=f"size={room if host == victim else 1 << 26}")

    environment = {"HCR_CACHE": str(cache)}
    with two_hosts(bench, "cached") as on:
        said = [child.wait(SECONDS)[1] for child in on.start(*FLAGS, entered=small, environment=environment)]
        on.refuse_left()
        if not all("ChildFailedError [2]" in each for each in said) or on.run.exists():
            raise Wrong(f"not 2 on both, or a folder is there: {said[0][-500:]} {said[1][-500:]}")
        told = "".join(said)
        if told.count("the decoded images need") != 1:
            raise Wrong(f"not said, or twice: {told[-900:]}")
        if f"rank {victim} on {on.names[victim]}" not in told and victim:
            raise Wrong(f"the host is not named: {told[-500:]}")
        on.finish(environment=environment)
    return "refused, then trained"


def full_save(bench: Bench, chance: random.Random) -> str:
    """One host has no room for its part of a checkpoint: both end, nothing half-written is left, and they go on."""
    way = chance.choice(("ddp", "zero2", "fsdp2"))
    victim, number = 0 if way == "ddp" else chance.randrange(2), chance.randrange(1, 4)
    room, struck = PAGE * chance.randrange(1, 3), bench.folder / "struck"
    struck.unlink(missing_ok=True)

    def before(rank: int) -> None:
        from engine.recovery.checkpoint import Checkpointer
        from engine.recovery.shards import FOLDER

        count, real = [0], Checkpointer._write

        def write(self, draft, target, state, parts):
            count[0] += 1
            if count[0] != number:
                return real(self, draft, target, state, parts)
            place = draft if parts is None else draft / FOLDER
            place.mkdir(exist_ok=True)
            mount("tmpfs", place, "tmpfs", options=f"size={room}")
            struck.touch()
            try:
                return real(self, draft, target, state, parts)
            finally:
                called(LIBC.umount2(os.fsencode(place), 0))

        if rank == victim:
            Checkpointer._write = write

    with two_hosts(bench, way) as on:
        ended = [child.wait(SECONDS) for child in on.start(*FLAGS, before=before)]
        on.refuse_left()
        told = "".join(said for _, said in ended)
        if not struck.exists() or not all(code for code, _ in ended):
            raise Wrong(f"exit {[code for code, _ in ended]}, struck {struck.exists()}: {told[-900:]}")
        if told.count("the disk is full") != 1 or not ("--resume" in told or "no checkpoint was written" in told):
            raise Wrong(f"says something else: {told[-900:]}")
        refuse_strays(on.run)
        on.finish()
    return "told, ended, went on"
