"""Memory that runs out where no step can be repeated: all ranks start again in their places, under the next plan."""

import json

import pytest

from tests.launch.test_distributed import compare, zero

SCRIPT = "tests/launch/short_of_memory.py"


def short(tiny: list[str]) -> list[str]:
    """The same run on the script's network."""
    return ["--arch", "short_of_memory", *tiny[2:]]


def memory(where: str, images: int, call: int, rank: int = 1) -> dict[str, str]:
    return {"OOM_IN": where, "OOM_IMAGES": str(images), "OOM_CALL": str(call), "OOM_RANK": str(rank)}


def effective(rows, run, kind: str) -> list[dict]:
    """A run's rows; of a step that was done twice, the later one."""
    return list({row["step"]: row for row in rows(run, kind)}.values())


def assert_started_again(rows, run, alone, reason: str, micro: int) -> None:
    """The event is there, the plan is the next one, and the run ended where an undisturbed one does."""
    compare(lambda folder, kind: effective(rows, folder, kind), run, alone)
    events = rows(run, "event")
    assert [row["event"] for row in events] == ["start", "out_of_memory", "resume", "finished"]
    assert events[1]["reason"] == f"CUDA out of memory. {reason}"
    assert {"predicted_bytes", "allocated_bytes", "step"} <= events[1].keys()
    assert json.loads((run / "plan.json").read_text())["micro_batch_size"] == micro


@pytest.mark.distributed
@pytest.mark.parametrize("stage", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow)])
def test_under_deepspeed(launch, tiny, rows, alone, tmp_path, root, stage):
    """In the second epoch, on one of two ranks; the other one waits in an exchange or is about to.

    Each rank has written its shard of what they go on from, which is no pickle.
    """
    run = tmp_path / "run"
    done = launch(
        *short(tiny), "--output", run, script=SCRIPT, ranks=2, **zero(root, stage), **memory("forward", 12, call=10)
    )
    assert "out of memory at step 10" in done.stdout and "--parallel.micro-batch-size 10" in done.stdout
    assert "resuming from" in done.stdout and "step-00000007" in done.stdout
    assert_started_again(rows, run, alone, "20 images", micro=10)
    for checkpoint in (run / "checkpoints").iterdir():
        assert len(list((checkpoint / "shards").glob("*.safetensors"))) == 2, checkpoint


@pytest.mark.distributed
def test_in_an_update_after_the_ranks_had_exchanged(launch, tiny, rows, alone, tmp_path):
    """The other rank has changed its weights by then. The first rank fails, before any checkpoint."""
    run = tmp_path / "run"
    done = launch(*short(tiny), "--output", run, script=SCRIPT, ranks=2, **memory("update", 12, call=3, rank=0))
    assert "after the ranks had exchanged gradients): all ranks start again from the start with" in done.stdout
    assert_started_again(rows, run, alone, "20 images, after the ranks had exchanged gradients", micro=10)


@pytest.mark.slow
def test_in_an_evaluation(launch, tiny, rows, alone, tmp_path):
    """On one process, which tells nobody."""
    run = tmp_path / "run"
    done = launch(*short(tiny), "--output", run, script=SCRIPT, **memory("evaluation", 25, call=12, rank=0))
    assert "all ranks start again from" in done.stdout and "step-00000007 with" in done.stdout
    assert_started_again(rows, run, alone, "40 images", micro=20)


@pytest.mark.distributed
@pytest.mark.slow
def test_again_and_again(launch, tiny, rows, alone, tmp_path, root):
    """Down to micro-batches that do not divide a share evenly: 20 images as 3, 3, 3, 3, 2, 2, 2, 2."""
    run = tmp_path / "run"
    launch(*short(tiny), "--output", run, script=SCRIPT, ranks=2, **zero(root, 2), **memory("forward", 4, call=3))
    compare(lambda folder, kind: effective(rows, folder, kind), run, alone)
    assert sum(row["event"] == "out_of_memory" for row in rows(run, "event")) == 3
    assert json.loads((run / "plan.json").read_text())["micro_batch_size"] == 3


def test_nothing_less_to_try_ends_the_run(launch, tiny, tmp_path, rows):
    """One image at a time is the least. The first update only allocates the state."""
    run = tmp_path / "run"
    done = launch(*short(tiny), "--output", run, script=SCRIPT, code=1, **memory("update", 0, call=3, rank=0))
    assert "out of memory at step 2" in done.stderr
    assert rows(run, "event")[-1]["event"] == "memory_exhausted"


def test_before_anything_has_run(launch, tiny, tmp_path):
    """No plan helps, and nothing is left behind."""
    run = tmp_path / "run"
    done = launch(*short(tiny), "--output", run, script=SCRIPT, code=1, **memory("setup", 0, call=1, rank=0))
    assert done.stderr.startswith("error: out of memory before the first step") and "Traceback" not in done.stderr
    assert not run.exists()
