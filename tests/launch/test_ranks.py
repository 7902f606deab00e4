"""Ranks that begin together or not at all, stop together, and name the one that went."""

import json
import shutil
import signal
import socket
from pathlib import Path

import pytest

from tests.launch.ranks import Ranks
from tests.launch.test_distributed import zero
from tests.waiting import PATIENCE, until

pytestmark = pytest.mark.distributed


def refused(ranks: Ranks, run: Path, error: str = "error") -> str:
    """What the first of two ranks says where both end with 2, without a run; `error` the other has not said."""
    assert ranks.codes() == [2, 2]
    first, second = ranks.said
    assert error not in second and not run.exists()
    return first


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"flags": ["--seed", 3]}, "would train another run than rank 0"),
        pytest.param({"flags": ["--data.root", "/nowhere"]}, "/nowhere", marks=pytest.mark.slow),
        pytest.param({"flags": ["--epochs", "many"]}, "many", marks=pytest.mark.slow),
        pytest.param({"flags": ["--lr=-1"]}, "--lr must be above 0", marks=pytest.mark.slow),
        pytest.param({"environment": {"ACCELERATE_USE_MEGATRON_LM": "1"}}, "Megatron-LM", marks=pytest.mark.slow),
        pytest.param({"environment": {"WORLD_SIZE": "3"}}, "WORLD_SIZE is 3 there and 2 here", marks=pytest.mark.slow),
    ],
)
def test_one_that_cannot_go_on_ends_all(root, tiny, tmp_path, more, words):
    """One message from the first rank, exit code 2 on both, nothing left behind."""
    ranks = Ranks(root, tmp_path, [*tiny, "--output", tmp_path / "run"], different={1: more})
    first = refused(ranks, tmp_path / "run")
    assert words in first and "rank 1 on" in first and "Traceback" not in first


@pytest.mark.slow
def test_other_code_on_one_node(root, tiny, tmp_path):
    """One line more in one file."""
    other = tmp_path / "other"
    for name in ("engine", "archs", "kernels", "launch", "tests", "configs"):
        shutil.copytree(root / name, other / name, ignore=shutil.ignore_patterns("__pycache__"))
    with (other / "engine" / "step" / "loss.py").open("a") as file:
        file.write("# changed\n")
    more = {"root": other, "environment": {"PYTHONPATH": str(other)}}
    ranks = Ranks(root, tmp_path, [*tiny, "--output", tmp_path / "run"], different={1: more}, PYTHONPATH=str(root))
    first = refused(ranks, tmp_path / "run")
    assert "would train another run than rank 0" in first and "the hash of the code is" in first


@pytest.mark.slow
def test_a_deepspeed_field_that_contradicts_the_run_on_one_node(root, tiny, tmp_path):
    """It is met after the ranks did; the others are told all the same, before a network is built."""
    shared = zero(root, 2)
    own = json.loads(Path(shared["ACCELERATE_DEEPSPEED_CONFIG_FILE"]).read_text()) | {"gradient_clipping": 5.0}
    (tmp_path / "own.json").write_text(json.dumps(own))
    more = {"environment": {"ACCELERATE_DEEPSPEED_CONFIG_FILE": str(tmp_path / "own.json")}}
    ranks = Ranks(root, tmp_path, [*tiny, "--output", tmp_path / "run"], different={1: more}, **shared)
    first = refused(ranks, tmp_path / "run", "error:")
    assert "DeepSpeed's configuration says gradient_clipping: 5.0" in first and "rank 1 on" in first


@pytest.mark.slow
def test_an_address_that_is_missing(root, tiny, tmp_path):
    ranks = Ranks(root, tmp_path, tiny, MASTER_ADDR="", MASTER_PORT="")
    assert ranks.codes() == [2, 2]
    assert "but not MASTER_ADDR and MASTER_PORT" in ranks.said[0] and ranks.said[1] == ""


@pytest.mark.slow
def test_a_port_in_use(root, tiny, tmp_path):
    """By something that never answers: the first rank says so at once, the other one in its time."""
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = str(other.getsockname()[1])
        ranks = Ranks(root, tmp_path, [*tiny, "--parallel.timeout", 10], MASTER_PORT=port)
        assert ranks.codes() == [2, 2]
    assert f"MASTER_PORT {port} is in use" in ranks.said[0]


def test_a_signal_to_one_stops_both_at_the_next_step(root, tiny, tmp_path, rows):
    """In mid-epoch, with no log point near; both exit with 143, and the step is saved.

    The first one stands still behind its only row until then, and the other one waits for it.
    """
    run, released = tmp_path / "run", tmp_path / "released"
    flags = [*tiny, "--batch-size", 2, "--data.limit", 0, "--log.every", 100_000, "--epochs", 50, "--output", run]
    ranks = Ranks(root, tmp_path, flags, HELD=f"1:{released}")
    try:
        until(lambda: (run / "metrics.jsonl").is_file() and rows(run, "step"), ranks.processes, lambda: ranks.said)
        ranks.processes[1].send_signal(signal.SIGTERM)
        released.touch()
        assert ranks.codes() == [143, 143], ranks.said
    finally:
        ranks.kill()
    stopped = rows(run, "event")[-1]
    assert stopped["event"] == "interrupted" and 1 <= stopped["step"] <= 4, "an epoch has 719 steps"
    assert (run / "checkpoints" / f"step-{stopped['step']:08d}" / "trainer.pt").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_goes_is_named(root, tiny, tmp_path, number):
    """Killed: its exchange fails at once. Stopped: after the time that was set."""
    run = tmp_path / "run"
    ranks = Ranks(root, tmp_path, [*tiny, "--epochs", 5000, "--parallel.timeout", 6, "--output", run])
    try:
        until(lambda: list(run.glob("checkpoints/step-*")), ranks.processes, lambda: ranks.said)
        ranks.processes[1].send_signal(number)
        assert ranks.processes[0].wait(PATIENCE) == 1
    finally:
        ranks.kill()
    assert f"rank 1 on {socket.gethostname()}: no sign of life" in ranks.said[0]
    assert f"--resume {run}" in ranks.said[0]


@pytest.mark.slow
def test_a_run_folder_that_the_machines_do_not_share(root, tiny, tmp_path):
    """Where each writes a part of a checkpoint: told before the first step, and nothing is left behind."""
    elsewhere = [tmp_path / name for name in ("a", "b")]
    for place in elsewhere:
        place.mkdir()
        for name in ("engine", "archs", "kernels", "launch", "tests", "configs"):
            (place / name).symlink_to(root / name)
    different = {rank: {"root": place} for rank, place in enumerate(elsewhere)}
    more = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "PYTHONPATH": str(root)}
    ranks = Ranks(root, tmp_path, [*tiny, "--parallel.timeout", 10, "--output", "run"], different=different, **more)
    first = refused(ranks, elsewhere[0] / "run")
    assert f"the run folder run is not the same on {socket.gethostname()}" in first and "Traceback" not in first
