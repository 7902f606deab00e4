"""A short selection of the table of faults (tests/faults/run.py); all of it is `make test-faults`."""

import json
import os

import pytest

from tests.faults.kinds import DEAR, HOSTS, KINDS
from tests.faults.over_hosts import why_not
from tests.faults.table import GROUPS, lines, sentence
from tests.faults.trial import Bench, Wrong, moment

pytestmark = [pytest.mark.faults, pytest.mark.skipif(not hasattr(os, "fork"), reason="runs are forked")]
SHORT = (
    "images gone on one of two ranks",
    "SIGKILL",
    "SIGKILL in a write beside training",
    "SIGTERM",
    "flipped bit in a checkpoint",
    "full disk",
    "run folder moved away",
    "data moved away",
)


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    return Bench(tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize("name", SHORT)
def test_a_fault_at_one_moment(bench, name):
    KINDS[name](bench, moment(name, 3))


@pytest.mark.slow
@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("name", sorted(KINDS.keys() - DEAR))
def test_a_fault_at_more_moments(bench, name, number):
    KINDS[name](bench, moment(name, number))


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("name", [name for name in KINDS if name in DEAR])
def test_a_fault_of_two_ranks(bench, name):
    if name in HOSTS and why_not():
        pytest.skip(why_not())
    KINDS[name](bench, moment(name, 0))


def test_the_comparison_sees_what_differs(bench):
    """A harness that finds everything right shows nothing: a changed bit, a missing row, a stray are wrong to it."""
    run = bench.copy("checked")
    bench.compare(run)
    (run / ".config.yaml.1.tmp").touch()
    with pytest.raises(Wrong, match="left lying"):
        bench.compare(run)
    (run / ".config.yaml.1.tmp").unlink()
    rows = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join(row for row in rows if '"step": 3,' not in row) + "\n")
    with pytest.raises(Wrong, match="other rows"):
        bench.compare(run)
    data = bytearray((run / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (run / "model.safetensors").write_bytes(data)
    with pytest.raises(Wrong, match="other weights"):
        bench.compare(run)


def test_a_hang_and_an_orphan_are_seen(bench, monkeypatch):
    import subprocess
    import sys

    from tests.faults import trial

    monkeypatch.setattr(trial, "SECONDS", 1)
    child = trial.start([], bench.folder / "hang.log", before=lambda: __import__("time").sleep(600))
    with pytest.raises(Wrong, match="hangs"):
        child.wait()
    monkeypatch.undo()
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    child = trial.start([], bench.folder / "orphan.log", before=lambda: (subprocess.Popen(sleep), os._exit(0)))
    try:
        with pytest.raises(Wrong, match="1 processes outlive it"):
            child.wait()
    finally:
        os.killpg(child.pid, 9)


def test_the_table_is_of_these_kinds_and_the_readme_shows_it(root):
    """profiles/faults.json has every kind; the README's lines and counts are the file's."""
    table = json.loads((root / "profiles" / "faults.json").read_text())["kinds"]
    assert table.keys() == KINDS.keys()
    assert all(sum(row["outcomes"].values()) + len(row["wrong"]) == row["moments"] for row in table.values())
    assert sorted(name for _, names, _ in GROUPS for name in names) == sorted(KINDS)
    readme = (root / "README.md").read_text()
    assert sentence(table) in readme
    assert "\n".join(lines(table)) in readme
