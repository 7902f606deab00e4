"""Ranks that run out of memory together, and one at a time."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.config import LogConfig
from engine.step.recompute import by_block
from engine.step.wrap import bare_module
from tests.engine.conftest import unused_port
from tests.engine.recovery.test_rescue import OPTIM, Failing, Net, rows


def two_ranks(
    rank: int, port: int, failing: dict | None, folder: str, sync_bn: bool = False, sent: str = "none"
) -> None:
    """Train on one of two gloo ranks, some of which run out of memory at one call, and recompute after that."""

    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "ACCELERATE_USE_CPU": "true",
    }
    torch.set_num_threads(1)
    from engine.config import ModelConfig, ParallelConfig, PrecisionConfig, RunConfig
    from engine.recovery.interrupt import Interrupt
    from engine.runs.runfolder import RunFolder
    from engine.step.optim import build_optimizer
    from engine.step.plan import Hardware, make_plan
    from engine.step.wrap import Launch, build_accelerator, wrap
    from engine.train.trainer import Trainer
    from tests.engine.conftest import MadeLoader

    torch.manual_seed(0)
    model = Net()
    config = RunConfig(
        model=ModelConfig(compile="off"),
        optim=OPTIM,
        parallel=ParallelConfig(8 // (failing or {}).get("split", 1), sync_bn, sent),
        precision=PrecisionConfig("fp32"),
        log=LogConfig(every=1, plots=False),
    )
    plan = make_plan(config, model, Hardware("cpu", "CPU"), ranks=2)
    accelerator = build_accelerator(plan, Launch(rank, rank, 2, None), config.optim)
    accelerator.ddp_handler.bucket_cap_mb = 1e-4  # 104 bytes: several buckets, from the second step on
    optimizer = build_optimizer(model, config.optim)
    run = RunFolder(Path(folder) / "run")
    run.checkpoints.mkdir(parents=True, exist_ok=True)

    class Mine(MadeLoader):
        """This rank's half of every batch."""

        def epoch(self, epoch, start_step=0):
            for batch in super().epoch(epoch, start_step):
                half = slice(rank * len(batch.images) // 2, (rank + 1) * len(batch.images) // 2)
                batch.images, batch.labels = batch.images[half], batch.labels[half]
                batch.weights, batch.count = batch.weights[half], len(batch.images[half])
                yield batch

    train, val = Mine(44, 16, True), Mine(30, 16, False)
    if failing and rank in failing["ranks"]:
        Failing(model, failing["where"], {failing["call"]})
    model, optimizer = wrap(model, optimizer, plan, accelerator)
    ladder = (replace(plan, recompute="block", policy=by_block(1)),)
    trainer = Trainer(config, plan, accelerator, model, optimizer, train, val, ["a", "b"], run, Interrupt(), ladder)
    generator = torch.get_rng_state()
    trainer.fit()
    result = {
        "state": bare_module(trainer.model).state_dict(),
        "generator": torch.equal(generator, torch.get_rng_state()),
        "recompute": trainer.plan.recompute,
        "buckets": len(trainer.model.reducer._get_zeros_like_grad_buckets()),
        "events": trainer.rescue.events,
        "step": trainer.progress.step,
        "epochs": rows(trainer, "epoch") if rank == 0 else [],
    }
    torch.save(result, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Call to train on two ranks; returns what each ended with. One run of a kind."""
    done: dict[str, list[dict]] = {}

    def train(failing: dict | None = None, sync_bn: bool = False, sent: str = "none") -> list[dict]:
        key = f"{failing} {sync_bn} {sent}"
        if key not in done:
            folder = tmp_path_factory.mktemp("ranks")
            torch.multiprocessing.start_processes(
                two_ranks, (unused_port(), failing, str(folder), sync_bn, sent), nprocs=2, start_method="spawn"
            )
            done[key] = [torch.load(folder / f"{rank}.pt") for rank in range(2)]
        return done[key]

    return train


def assert_rescued(ranks: list[dict], undisturbed: list[dict], step: int) -> None:
    """All ranks changed their plan at `step`, and ended where a run ends that never failed."""
    for rank, expected in zip(ranks, undisturbed, strict=True):
        assert rank["recompute"] == "block" and expected["recompute"] == "none"
        assert rank["step"] == expected["step"] == 6
        assert [event["step"] for event in rank["events"]] == [step] and not expected["events"]
        for name, tensor in expected["state"].items():
            torch.testing.assert_close(rank["state"][name], tensor, rtol=0, atol=0, msg=name)
    for epoch, expected in zip(ranks[0]["epochs"], undisturbed[0]["epochs"], strict=True):
        for figure in ("train_images", "train_loss", "val_loss"):
            assert epoch[figure] == expected[figure], figure


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("failing", "step"),
    [
        pytest.param({"ranks": [1], "where": "backward", "call": 1}, 1, marks=pytest.mark.slow),
        # Of several buckets, the head's has been handed in when the backward pass breaks off.
        ({"ranks": [1], "where": "backward", "call": 3}, 3),
        pytest.param({"ranks": [0], "where": "forward", "call": 2}, 2, marks=pytest.mark.slow),
        pytest.param({"ranks": [0, 1], "where": "backward", "call": 2}, 2, marks=pytest.mark.slow),
        pytest.param({"ranks": [1], "where": "backward", "call": 6}, 6, marks=pytest.mark.slow),
        # In halves: the second half of the second step, and the first half of the third, before anything is exchanged.
        pytest.param({"ranks": [1], "where": "backward", "call": 4, "split": 2}, 2, marks=pytest.mark.slow),
        pytest.param({"ranks": [0], "where": "backward", "call": 5, "split": 2}, 3, marks=pytest.mark.slow),
    ],
    ids=["first step", "third step", "first rank", "both ranks", "last step", "second half", "first half"],
)
def test_two_ranks_agree(failing, step, trained):
    """A subset fails, in whatever step: all repeat it under the next plan, with nothing lost or counted twice."""
    ranks = trained(failing)
    undisturbed = trained({"ranks": [], "split": failing["split"]} if "split" in failing else None)
    assert undisturbed[0]["buckets"] > 1
    assert_rescued(ranks, undisturbed, step)


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("failing", "step"),
    [
        # A rehearsal is call 1 of either pass, the first tail's is call 4.
        pytest.param({"ranks": [1], "where": "backward", "call": 1}, 1, marks=pytest.mark.slow),
        pytest.param({"ranks": [1], "where": "forward", "call": 2}, 1, marks=pytest.mark.slow),
        # The other rank has gathered statistics in its forward pass, and waits for their gradients' sums.
        ({"ranks": [1], "where": "backward", "call": 3}, 2),
        pytest.param({"ranks": [0], "where": "backward", "call": 5}, 3, marks=pytest.mark.slow),
        pytest.param({"ranks": [0, 1], "where": "backward", "call": 8}, 6, marks=pytest.mark.slow),
        # In halves: three steps of two calls and a rehearsal, then the second half of the third.
        pytest.param({"ranks": [1], "where": "backward", "call": 6, "split": 2}, 2, marks=pytest.mark.slow),
        pytest.param({"ranks": [0], "where": "forward", "call": 5, "split": 2}, 2, marks=pytest.mark.slow),
    ],
    ids=["rehearsal", "first step", "second step", "tail", "both ranks", "second half", "first half"],
)
def test_ranks_agree_where_norms_are_synchronised(failing, step, trained):
    """They exchange within the passes: the rank that fails does its part in that too."""
    split = {"ranks": [], "split": failing["split"]} if "split" in failing else None
    undisturbed = trained(split, sync_bn=True)
    assert_rescued(trained(failing, sync_bn=True), undisturbed, step)
    assert undisturbed[0]["generator"]
    alone = trained(split)
    assert not torch.equal(alone[0]["state"]["stem.0.weight"], undisturbed[0]["state"]["stem.0.weight"])


@pytest.mark.slow
@pytest.mark.distributed
def test_ranks_agree_where_gradients_are_sent_in_bf16(trained):
    """The rank that failed hands in zeros of that type; weights are near those of fp32, and others."""
    undisturbed = trained(sent="bf16")
    assert_rescued(trained({"ranks": [1], "where": "backward", "call": 3}, sent="bf16"), undisturbed, 3)
    plain, rounded = (found[0]["state"]["stem.0.weight"] for found in (trained(), undisturbed))
    assert not torch.equal(plain, rounded)
    torch.testing.assert_close(plain, rounded, rtol=1e-2, atol=1e-2)
