"""Faults of two ranks: launchers, ranks and stores that die, ranks that hang, images that are gone on one of them.

Each is compared with an undisturbed run of two ranks, under DDP, ZeRO-2 or FSDP2, bit for bit.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.faults.beside import CHECKPOINTS, in_the_write
from tests.faults.moments import at_batch
from tests.faults.torchrun import RANKS, ROOT, Before, ranks_of, static_ranks, torchrun
from tests.faults.trial import FLAGS, Bench, Child, Wrong, compare, read_rows, read_weights, refuse_strays

SECONDS = 240
"""Of a launch, on a busy machine."""
ENVIRONMENTS = {
    "ddp": {},
    "cached": {},
    "zero2": {
        "ACCELERATE_USE_CPU": "false",
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(ROOT / "configs" / "deepspeed" / "zero2.json"),
        "DS_ACCELERATOR": "cpu",
        "DS_LOG_LEVEL": "error",
    },
    "fsdp2": {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"},
}
"""Ways of training, and what a launcher says for each."""


class Launches:
    """Launches of two ranks on a bench's pictures, and what an undisturbed one left."""

    def __init__(self, bench: Bench, way: str = "ddp") -> None:
        self.bench, self.way = bench, way
        self.run, self.log = bench.folder / f"{way}-run", bench.folder / f"{way}.log"
        whole = bench.folder / f"{way}-whole"
        if way == "zero2":
            os.environ.update(DS_ACCELERATOR="cpu", DS_LOG_LEVEL="error")
            import deepspeed  # noqa: F401  (seconds, once instead of in each launch)
        if not (whole / "model.safetensors").exists():
            code, said = self.start(whole).wait(SECONDS)
            if code:
                raise Wrong(f"the undisturbed run of two ranks ends with {code}: {said[-600:]}")
        self.weights, self.rows = read_weights(whole), read_rows(whole)

    def flags(self, run: Path) -> list[str]:
        """Of a run, or to go on with it."""
        if (run / "config.yaml").exists():
            return ["--resume", str(run)]
        flags = [*FLAGS, "--data.root", str(self.bench.photos), "--output", str(run)]
        if self.way == "fsdp2":  # which keeps no average
            at = flags.index("--optim.ema")
            del flags[at : at + 2]
        return [*flags, "--data.cache", "disk"] if self.way == "cached" else flags

    def start(self, run: Path, *launcher: str, before: Before = lambda rank: None, more: tuple[str, ...] = ()) -> Child:
        """torchrun with two ranks; `more` are the run's flags."""
        flags, environment = [*self.flags(run), *more], ENVIRONMENTS[self.way]
        return torchrun(flags, self.log, *launcher, before=before, environment=environment)

    def fresh(self) -> Path:
        """A place for a run."""
        shutil.rmtree(self.run, ignore_errors=True)
        return self.run

    def finish(self) -> None:
        """Go on with the run, or begin it where nothing was written, and compare. Raises Wrong."""
        code, said = self.start(self.run).wait(SECONDS)
        if code:
            raise Wrong(f"going on ends with {code}: {said[-600:]}")
        compare(self.run, self.weights, self.rows)

    def refuse_orphans(self, seconds: float = SECONDS) -> None:
        """Raise Wrong for ranks that are still there after a while."""
        found = ranks_of(self.log)
        _, alive = psutil.wait_procs(found, timeout=seconds)
        alive = [one for one in alive if one in ranks_of(self.log)]
        for one in alive:
            one.kill()
        if alive:
            raise Wrong(f"{len(alive)} ranks outlive their launcher: {self.log.read_text(errors='replace')[-300:]}")


def until(condition: Callable[[], bool], child: Child, what: str) -> None:
    """Wait for something in a launch. Raises Wrong where it does not come."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        if time.monotonic() > deadline or not psutil.pid_exists(child.pid):
            raise Wrong(f"{what}: {child.log.read_text(errors='replace')[-400:]}")
        time.sleep(0.005)


def steps(run: Path) -> int:
    """Steps in the run's rows so far."""
    path = run / "metrics.jsonl"
    return path.read_text(errors="replace").count('"kind": "step"') if path.exists() else 0


def kill_launcher(bench: Bench, chance: random.Random) -> str:
    """SIGKILL of torchrun, and with it of the store, in start-up or in training: its ranks save and end."""
    launches = Launches(bench)
    run = launches.fresh()
    child = launches.start(run)
    until(lambda: len(ranks_of(launches.log)) == RANKS, child, "the ranks did not start")
    if chance.random() < 0.5:
        time.sleep(chance.uniform(0, bench.seconds))
    else:
        at = chance.randrange(1, 8)
        until(lambda: steps(run) >= at, child, f"step {at} was not reached")
    child.signal(signal.SIGKILL)
    child.wait(SECONDS, frames=True)
    launches.refuse_orphans()
    launches.finish()
    return "ended, went on"


def kill_rank(bench: Bench, chance: random.Random) -> str:
    """SIGKILL of one of two ranks under --max-restarts 2: torchrun starts both anew, and the run goes on to its end."""
    launches = Launches(bench)
    run = launches.fresh()
    victim, at = chance.randrange(RANKS), chance.randrange(1, 8)
    child = launches.start(run, "--max-restarts", "2", before=first_time(bench, victim, at_step(at)))
    code, said = child.wait(SECONDS, frames=True)
    refuse_missed(bench, said)
    if code:
        raise Wrong(f"exit {code}: {said[-500:]}")
    if "resuming from" not in said:
        raise Wrong("it did not go on")
    launches.refuse_orphans()
    compare(run, launches.weights, launches.rows)
    return "started anew, went on"


Harm = Callable[[Callable[[], None]], None]
"""Prepares a rank; what it is given is called where the fault happens."""


def first_time(bench: Bench, victim: int, harm: Harm, what: signal.Signals = signal.SIGKILL) -> Before:
    """`harm` is prepared in one rank, the first time that it is started, and sends it a signal."""
    prepared, struck = bench.folder / "prepared", bench.folder / "struck"
    for marker in (prepared, struck):
        marker.unlink(missing_ok=True)

    def strike() -> None:
        struck.touch()
        os.kill(os.getpid(), what)

    def before(rank: int) -> None:
        if rank == victim and not prepared.exists():
            prepared.touch()
            harm(strike)

    return before


def refuse_missed(bench: Bench, said: str) -> None:
    """Raise Wrong where the fault did not happen: what came out says nothing then."""
    if not (bench.folder / "struck").exists():
        raise Wrong(f"the fault did not happen: {said[-500:]}")


def at_step(number: int) -> Harm:
    """In the middle of that step, between the exchange of gradients and the update."""

    def harm(strike: Callable[[], None]) -> None:
        from engine.step.optimizer_step import OptimizerStep

        count, real = [0], OptimizerStep._clip

        def clip(self):
            count[0] += 1
            if count[0] == number:
                strike()
            return real(self)

        OptimizerStep._clip = clip

    return harm


def killed_in(launches: Launches, victim: int, harm: Harm) -> str:
    """A rank is killed where `harm` says; the launch ends, leaves nobody, and a resume ends where it should."""
    run = launches.fresh()
    child = launches.start(run, before=first_time(launches.bench, victim, harm))
    code, said = child.wait(SECONDS, frames=True)
    refuse_missed(launches.bench, said)
    if not code:
        raise Wrong(f"a rank was killed and the launch ends with 0: {said[-400:]}")
    launches.refuse_orphans()
    launches.finish()
    return "ended, went on"


def kill_in_sharded_save(bench: Bench, chance: random.Random) -> str:
    """SIGKILL of one of two ranks while both write their shards under ZeRO-2: before its own, behind it, at the end."""
    number, place = chance.randrange(1, 3), chance.choice(("_begin", "_write", "_finish"))
    early, victim = chance.random() < 0.5, 0 if place != "_write" else chance.randrange(RANKS)

    def harm(strike: Callable[[], None]) -> None:
        from engine.recovery.checkpoint import Checkpointer

        count, real = [0], getattr(Checkpointer, place)

        def method(self, *more):
            count[0] += 1
            if count[0] == number and early:
                strike()
            done = real(self, *more)
            if count[0] == number:
                strike()
            return done

        setattr(Checkpointer, place, method)

    return killed_in(Launches(bench, "zero2"), victim, harm)


def kill_in_write(bench: Bench, chance: random.Random) -> str:
    """SIGKILL of one of two ranks in the thread that writes beside training: the file under DDP, else its shard."""
    way = chance.choice(("ddp", "zero2", "fsdp2"))
    launches = Launches(bench, way)
    victim = 0 if way == "ddp" else chance.randrange(RANKS)
    noted = bench.folder / f"calls-{way}-{victim}"
    if not noted.exists():
        count = lambda rank: rank == victim and in_the_write(1, 0, lambda: None, lambda n: noted.write_text(str(n)))  # noqa: E731
        code, said = launches.start(launches.fresh(), before=count).wait(SECONDS)
        if code or not noted.exists():
            raise Wrong(f"the run whose calls are counted ends with {code}: {said[-300:]}")
    number, at = chance.randrange(1, CHECKPOINTS + 1), chance.randrange(1, int(noted.read_text()) + 1)
    return killed_in(launches, victim, lambda strike: in_the_write(number, at, strike))


def kill_in_evaluation(bench: Bench, chance: random.Random) -> str:
    """SIGKILL of one of two ranks at a batch of an evaluation."""
    number, victim = chance.randrange(1, 5), chance.randrange(RANKS)

    def harm(strike: Callable[[], None]) -> None:
        from engine.train import trainer

        count, real = [0], trainer.refuse_lost

        def batches(loader, **more):
            for batch in real(loader, **more):
                count[0] += 1
                if count[0] == number:
                    strike()
                yield batch

        trainer.refuse_lost = batches

    return killed_in(Launches(bench), victim, harm)


def kill_store(bench: Bench, chance: random.Random) -> str:
    """SIGKILL of the rank that holds the store, without a launcher: the other one ends by itself, with an error."""
    launches = Launches(bench)
    run = launches.fresh()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    at = chance.randrange(1, 8)
    first, other = static_ranks(launches.flags(run), launches.log, port, first_time(bench, 0, at_step(at)))
    first.wait(SECONDS)
    code, said = other.wait(SECONDS, frames=True)
    refuse_missed(bench, said)
    if code in (0, -signal.SIGKILL):
        raise Wrong(f"the rank that is left ends with {code}: {said[-300:]}")
    launches.finish()
    return "ended, went on"


def data_gone_on_one_rank(bench: Bench, chance: random.Random) -> str:
    """One rank's disk is gone at a random batch: an error with a path, no weights after it; put back, it goes on."""
    launches = Launches(bench)
    run = launches.fresh()
    victim, at = chance.randrange(RANKS), chance.randrange(2, 12)

    def harm(strike: Callable[[], None]) -> None:
        from engine.data.sources import source
        from engine.data.sources.reading import Unreachable

        def read(path: str) -> bytes:
            raise Unreachable("No such file or directory")

        def gone() -> None:
            (bench.folder / "struck").touch()
            source.read = read

        at_batch(at, gone)()

    child = launches.start(run, before=first_time(bench, victim, harm))
    code, said = child.wait(SECONDS)
    refuse_missed(bench, said)
    if not code or "could be read" not in said:
        raise Wrong(f"exit {code}: {said[-500:]}")
    launches.refuse_orphans()
    refuse_strays(run)
    launches.finish()
    return "ended, went on"


def hang(bench: Bench, chance: random.Random) -> str:
    """SIGSTOP of one rank: the other says which one after the time-out, and no process is left."""
    launches = Launches(bench)
    run = launches.fresh()
    victim, at = chance.randrange(RANKS), chance.randrange(1, 8)
    harm = first_time(bench, victim, at_step(at), signal.SIGSTOP)
    child = launches.start(run, before=harm, more=("--parallel.timeout", "5"))
    code, said = child.wait(SECONDS, frames=True)
    refuse_missed(bench, said)
    if not code or f"rank {victim}" not in said:
        raise Wrong(f"exit {code}, and rank {victim} is not named: {said[-500:]}")
    launches.refuse_orphans()
    launches.finish()
    return "named, ended, went on"
