"""The faults: each does its damage at a random moment or place, and says what was right about the outcome."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

from tests.faults import over_hosts, over_ranks
from tests.faults.beside import struck_in_a_write
from tests.faults.moments import at_batch
from tests.faults.trial import FLAGS, Bench, Wrong, refuse_strays, start

KINDS: dict[str, Callable[[Bench, random.Random], str]] = {}
"""By name; each returns the outcome in a few words and raises Wrong."""
DEAR: set[str] = set()
"""Those that start launchers and take a minute."""
HOSTS: set[str] = set()
"""Those that need two hosts (over_hosts.why_not)."""


def kind(name: str, dear: bool = False) -> Callable:
    """Register a fault under `name`."""

    def register(function: Callable[[Bench, random.Random], str]) -> Callable:
        KINDS[name] = function
        if dear:
            DEAR.add(name)
        return function

    return register


def expect(code: int, wanted: int | tuple[int, ...], said: str) -> None:
    """Raise Wrong for another exit code."""
    if code not in (wanted if isinstance(wanted, tuple) else (wanted,)):
        raise Wrong(f"exit {code}, not {wanted}: {said[-300:]}")


def fresh(bench: Bench) -> Path:
    """A place for a run."""
    for path in (bench.folder / "run", bench.folder / "moved"):
        shutil.rmtree(path, ignore_errors=True)
    return bench.folder / "run"


def go_on(bench: Bench, run: Path) -> str:
    """Finish a run that was ended, or start it anew where nothing was written yet."""
    if (run / "config.yaml").exists():
        bench.finish(run)
        return "went on"
    code, said = bench.start(run).wait()
    expect(code, 0, said)
    bench.compare(run)
    return "began anew"


def stopped(bench: Bench, chance: random.Random, number: signal.Signals, wanted: tuple[int, ...]) -> str:
    run = fresh(bench)
    child = bench.start(run)
    time.sleep(chance.uniform(0, bench.seconds))
    child.signal(number)
    code, said = child.wait()
    return after_a_signal(bench, run, code, said, (0, *wanted))


def after_a_signal(bench: Bench, run: Path, code: int, said: str, wanted: tuple[int, ...]) -> str:
    """What is left of a run that got a signal and ended with `code`; it goes on."""
    expect(code, wanted, said)
    if code > 0 and (run / "config.yaml").exists():
        refuse_strays(run)  # it had the time to tidy up
    if not code:
        bench.compare(run)
        return "had ended"
    return go_on(bench, run)


@kind("SIGKILL")
def killed(bench: Bench, chance: random.Random) -> str:
    """At any moment, in a write too."""
    return stopped(bench, chance, signal.SIGKILL, (-signal.SIGKILL,))


@kind("SIGTERM")
def terminated(bench: Bench, chance: random.Random) -> str:
    """Saved and 143; before the run had begun the signal's own end."""
    return stopped(bench, chance, signal.SIGTERM, (143, -signal.SIGTERM))


@kind("Ctrl-C")
def interrupted(bench: Bench, chance: random.Random) -> str:
    """Saved and 130."""
    return stopped(bench, chance, signal.SIGINT, (130, -signal.SIGINT))


def stopped_in_a_write(bench: Bench, chance: random.Random, number: signal.Signals, wanted: tuple[int, ...]) -> str:
    run = fresh(bench)
    child, struck = struck_in_a_write(bench, chance, run, number)
    code, said = child.wait()
    if not struck.exists():
        raise Wrong(f"the fault did not happen: {said[-300:]}")
    return after_a_signal(bench, run, code, said, wanted)


@kind("SIGKILL in a write beside training")
def killed_in_a_write(bench: Bench, chance: random.Random) -> str:
    """At any call of the thread that writes a checkpoint, while training goes on."""
    return stopped_in_a_write(bench, chance, signal.SIGKILL, (-signal.SIGKILL,))


@kind("SIGTERM in a write beside training")
def terminated_in_a_write(bench: Bench, chance: random.Random) -> str:
    """What is being written becomes whole, then the run saves where it is, or ends where that was its last step."""
    return stopped_in_a_write(bench, chance, signal.SIGTERM, (0, 143))


def newest(run: Path) -> Path:
    """The last checkpoint's folder."""
    return max((run / "checkpoints").glob("step-*"))


def damaged(bench: Bench, harm: Callable[[Path], None], chance: random.Random, names: tuple[str, ...]) -> str:
    """Harm a file of the newest checkpoint of a finished run; the one before is used and says so."""
    run = bench.copy("damaged")
    path = newest(run) / chance.choice(names)
    harm(path)
    said = bench.finish(run)
    if "passed over: checkpoint" not in said:
        raise Wrong(f"{path.name} is harmed and nothing is said")
    return "passed over"


@kind("flipped bit in a checkpoint")
def flipped(bench: Bench, chance: random.Random) -> str:
    """Any bit of any file."""

    def harm(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(data)

    return damaged(bench, harm, chance, ("trainer.pt",))


@kind("cut checkpoint")
def cut(bench: Bench, chance: random.Random) -> str:
    """At any length, nothing at all too."""
    return damaged(
        bench,
        lambda path: os.truncate(path, chance.choice((0, chance.randrange(path.stat().st_size)))),
        chance,
        ("trainer.pt", "checksums.json"),
    )


@kind("deleted file of a checkpoint")
def deleted(bench: Bench, chance: random.Random) -> str:
    """Without its tensors a checkpoint is passed over."""
    return damaged(bench, lambda path: path.unlink(), chance, ("trainer.pt",))


@kind("flipped bit in the weights")
def flipped_weights(bench: Bench, chance: random.Random) -> str:
    """In a tensor or in the header: refused by evaluate and by --pretrained."""
    run = bench.copy("damaged")
    path = run / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[chance.randrange(8, len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)
    flags = [*FLAGS, "--data.root", str(bench.photos), "--output", str(fresh(bench)), "--pretrained", str(path)]
    code, said = start(flags, bench.folder / "pretrained.log").wait()
    expect(code, 2, said)
    return "refused"


@kind("torn metrics")
def torn(bench: Bench, chance: random.Random) -> str:
    """Any number of bytes missing at the end: the run goes on, its last rows are written anew."""
    run = bench.copy("torn")
    shutil.rmtree(newest(run))
    path = run / "metrics.jsonl"
    whole = path.read_bytes()
    at = whole.rindex(b'"kind": "epoch"')
    os.truncate(path, chance.randrange(at, len(whole)))
    bench.finish(run)
    return "went on"


@kind("cut description")
def cut_description(bench: Bench, chance: random.Random) -> str:
    """config.yaml at any length: refused, and nothing is touched."""
    run = bench.copy("cut")
    path = run / "config.yaml"
    os.truncate(path, chance.randrange(path.stat().st_size - 20))
    before = {one: one.read_bytes() for one in run.rglob("*") if one.is_file() and one.name != ".owner"}
    code, said = bench.resume(run, "--epochs", "4").wait()
    expect(code, 2, said)
    if before != {one: one.read_bytes() for one in run.rglob("*") if one.is_file() and one.name != ".owner"}:
        raise Wrong("a refused resume has changed the folder")
    return "refused"


class FullDisk:
    """A file on a disk that takes no more."""

    def write(self, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@kind("full disk")
def full(bench: Bench, chance: random.Random) -> str:
    """Every write from a random one on fails; the draft is removed, the last checkpoint is named."""
    at = chance.randrange(3000)

    def before() -> None:
        from engine.runs import door

        count, real = [0], door.Remembering.write

        def write(self, data):
            count[0] += 1
            if count[0] > at:
                self._file = FullDisk()
            return real(self, data)

        door.Remembering.write = write

    run = fresh(bench)
    code, said = bench.start(run, before=before).wait()
    expect(code, (0, 1), said)
    refuse_strays(run)
    if code and not ("the disk is full" in said and ("--resume" in said or "no checkpoint was written" in said)):
        raise Wrong(f"says something else: {said[-300:]}")
    return go_on(bench, run)


@kind("run folder moved away")
def moved(bench: Bench, chance: random.Random) -> str:
    """An error, no new folder, and the run goes on where it is now."""
    run = fresh(bench)
    target = bench.folder / "moved"
    code, said = bench.start(run, before=at_batch(chance.randrange(2, 11), lambda: run.rename(target))).wait()
    expect(code, 1, said)
    if run.exists() or "is gone" not in said:
        raise Wrong(f"the old folder is there again, or nothing is said: {said[-200:]}")
    return go_on(bench, target)


@kind("data moved away")
def data_moved(bench: Bench, chance: random.Random) -> str:
    """An error, nothing is saved after it, and with the data put back the run goes on to the same bits."""
    run, data, away = fresh(bench), bench.folder / "data", bench.folder / "away"
    for path in (data, away):
        shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(bench.photos, data)
    code, said = bench.start(run, before=at_batch(chance.randrange(2, 10), lambda: data.rename(away)), data=data).wait()
    expect(code, 2, said)
    if "could be read" not in said and "no readable image" not in said:
        raise Wrong(f"says something else: {said[-300:]}")
    away.rename(data)
    return go_on(bench, run)


@kind("second session in one folder")
def second(bench: Bench, chance: random.Random) -> str:
    """Refused with process and machine; the first is not disturbed."""
    run = fresh(bench)
    child = bench.start(run)
    deadline = time.monotonic() + 60
    while not (run / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(chance.uniform(0, bench.seconds / 3))
    child.signal(signal.SIGSTOP)  # it is there for as long as the other one asks
    code, said = start(["--resume", str(run)], bench.folder / "second.log").wait()
    child.signal(signal.SIGCONT)
    ended, first = child.wait()
    expect(ended, 0, first)
    if not code and "finished" in said:
        return "the first had ended"
    expect(code, 2, said)
    if f"process {child.pid} on {os.uname().nodename}" not in said:
        raise Wrong(f"says something else: {said[-300:]}")
    bench.compare(run)
    return "refused"


@kind("strays of a killed writer")
def strays(bench: Bench, chance: random.Random) -> str:
    """Temporary files and drafts, as files, folders and links: swept, and nothing else."""
    run = bench.copy("strays")
    shutil.rmtree(newest(run))
    for number in range(chance.randrange(1, 6)):
        place = chance.choice((run, run / "checkpoints"))
        chosen = chance.choice(("file", "link", "draft"))
        if chosen == "file":
            (place / f".model.safetensors.{4194305 + number}.tmp").write_bytes(b"half")
        elif chosen == "link":
            (run / "checkpoints" / f".step-{number:08}.draft").symlink_to(bench.photos)
        else:
            (run / "checkpoints" / f".step-{number:08}.draft" / "zero").mkdir(parents=True)
    bench.finish(run)
    if not (bench.photos / "train").is_dir():
        raise Wrong("a link was followed and deleted")
    return "swept"


@kind("renamed class")
def renamed(bench: Bench, chance: random.Random) -> str:
    """Other names, or the two swapped in order: refused before anything is written."""
    run = bench.copy("renamed")
    data = bench.folder / "data"
    shutil.rmtree(data, ignore_errors=True)
    shutil.copytree(bench.photos, data)
    name = "".join(chance.choice("abyz") for _ in range(5))
    for split in ("train", "val"):
        (data / split / "cat").rename(data / split / name)
    code, said = bench.resume(run, "--data.root", str(data), "--epochs", "4").wait()
    expect(code, 2, said)
    if "cat" not in said or name not in said:
        raise Wrong(f"says something else: {said[-300:]}")
    bench.compare(run)
    return "refused"


kind("SIGKILL of torchrun", dear=True)(over_ranks.kill_launcher)
kind("SIGKILL of one of two ranks", dear=True)(over_ranks.kill_rank)
kind("SIGKILL in an evaluation of two ranks", dear=True)(over_ranks.kill_in_evaluation)
kind("SIGKILL of the rank with the store", dear=True)(over_ranks.kill_store)
kind("SIGSTOP of one of two ranks", dear=True)(over_ranks.hang)
kind("images gone on one of two ranks", dear=True)(over_ranks.data_gone_on_one_rank)
kind("SIGKILL in a sharded save", dear=True)(over_ranks.kill_in_sharded_save)
kind("SIGKILL of a rank that writes beside training", dear=True)(over_ranks.kill_in_write)
for name, fault in (
    ("SIGKILL of all of one of two hosts", over_hosts.kill_host),
    ("SIGKILL of the launcher of one of two hosts", over_hosts.kill_launcher_of_host),
    ("full disk on one of two hosts", over_hosts.full_disk_of_host),
):
    kind(name, dear=True)(fault)
    HOSTS.add(name)
