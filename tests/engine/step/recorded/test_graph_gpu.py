"""Steps that are recorded and replayed do what launched ones do; what cannot be recorded is launched. Needs a GPU."""

import json

import pytest
import torch

from engine.config import LogConfig, OptimConfig
from engine.plan.run_plan import halvings
from engine.recovery.checkpoint import checkpoint_to_resume, read_state
from engine.step.recorded import graph as recorded
from engine.train.lr_finder import kept, put_back
from tests.engine.conftest import TinyNet, rescue_of

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]

IMAGES, BATCH = 6 * 16 + 5, 16
"""Seven steps an epoch, the last one a tail."""


@pytest.fixture
def replays(monkeypatch) -> list[int]:
    """The step at which each replay was."""
    found = []
    replay = torch.cuda.CUDAGraph.replay

    def counted(self):
        found.append(len(found) + 1)
        replay(self)

    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", counted)
    return found


class Net(TinyNet):
    """Without a bias before BatchNorm: its gradient is rounding alone, of which Adam makes whole steps."""

    def __init__(self):
        super().__init__()
        self.stem.bias = None


def trained(make_trainer, name, cuda_graph, model=Net, **given):
    optim = OptimConfig(**{"epochs": 2, "batch_size": BATCH, "lr": 0.01, "schedule": "cosine"} | given.pop("optim", {}))
    torch.manual_seed(0)
    model = model()
    trainer = make_trainer(
        name, model=model, device="cuda", images=IMAGES, optim=optim, log=LogConfig(every=3),
        cuda_graph="off" if cuda_graph == "off" else "on", **given,
    )  # fmt: skip
    if cuda_graph == "launched":
        trainer.step.graph.failed = "told to launch"
    torch.cuda.manual_seed(1)
    trainer.fit()
    return trainer


def rows_of(trainer, kind):
    rows = [json.loads(line) for line in trainer.folder.metrics.read_text().splitlines()]
    return [row for row in rows if row["kind"] == kind]


def same_run(one, other, bits=True):
    """Weights, statistics and what was counted. Not in all bits beside a rate that is a double on the host."""
    for (name, ours), theirs in zip(one.model.state_dict().items(), other.model.state_dict().values(), strict=True):
        if bits:
            assert torch.equal(ours, theirs), name
        else:
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    for key in ("train_loss", "train_accuracy", "train_images", "val_loss", "lr"):
        ours, theirs = ([row[key] for row in rows_of(run, "epoch")] for run in (one, other))
        assert ours == (theirs if bits else pytest.approx(theirs)), key


WAYS = {
    "fp32": {},
    "fp16": {"precision": "fp16"},
    "bf16": {"precision": "bf16"},
    "sgd": {"optim": {"optimizer": "sgd"}},
    "rmsprop": {"optim": {"optimizer": "rmsprop"}},
    "adamw with rates by layer": {"optim": {"optimizer": "adamw", "backbone_lr": 0.002}},
    "average, fp16": {"optim": {"ema": 0.9}, "precision": "fp16"},
    "sharpness-aware": {"optim": {"sam": 0.05}},
    "clipped, fp16": {"optim": {"clip_norm": 1.0}, "precision": "fp16"},
    "micro-batches": {"micro": 4},
    "compiled": {"compile": "on"},
}
QUICK = ("fp32", "clipped, fp16")


@pytest.mark.parametrize("way", [way if way in QUICK else pytest.param(way, marks=pytest.mark.slow) for way in WAYS])
def test_replayed_steps_train_as_launched_ones(make_trainer, replays, way):
    """Bit for bit, with rate and count on the device either way; in fp32 nearly so beside a run that keeps them on the
    host, as runs without a recording do. (In 16 bits a rate's last bit decides about a weight's.)"""
    launched = trained(make_trainer, "launched", "launched", **dict(WAYS[way]))
    assert not replays
    replayed = trained(make_trainer, "replayed", "on", **dict(WAYS[way]))
    assert len(replays) == 12 - recorded.WARM_UP  # whole steps; both tails were launched
    same_run(replayed, launched)
    if way == "fp32":
        same_run(replayed, trained(make_trainer, "on the host", "off"), bits=False)
    (event,) = [row for row in rows_of(replayed, "event") if row.get("event") == "cuda_graph"]
    assert event["step"] == recorded.WARM_UP + 1 and event["pool_bytes"] > 0


def test_no_replayed_step_waits_for_the_device(make_trainer):
    trainer = make_trainer(
        device="cuda", images=160, optim=OptimConfig(epochs=1, batch_size=16), log=LogConfig(every=1000),
        cuda_graph="on",
    )  # fmt: skip
    step = trainer.step.take

    def watched(batch):
        torch.cuda.set_sync_debug_mode("error" if trainer.progress.step > recorded.WARM_UP else "default")
        try:
            step(batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    trainer.step.take = watched
    trainer._train_epoch()
    assert trainer.progress.step == 10 and trainer.step.graph._graph is not None


class Asks(Net):
    """Looks at a value within its forward pass, as no recording can."""

    def forward(self, images):
        assert images.sum().item() < 1e9
        return super().forward(images)


def test_what_cannot_be_recorded_is_said_and_launched(make_trainer, replays, capsys):
    launched = trained(make_trainer, "launched", "launched", model=Asks, precision="fp16", micro=4)
    capsys.readouterr()
    asked = trained(make_trainer, "asked", "on", model=Asks, precision="fp16", micro=4)
    said = capsys.readouterr().out
    assert said.count("the step cannot be recorded as a CUDA graph, it is launched: ") == 1 and not replays
    same_run(asked, launched)
    (event,) = [row for row in rows_of(asked, "event") if row.get("event") == "cuda_graph"]
    assert "captur" in event["reason"]


class Grows(TinyNet):
    """Takes 64 MiB for a whole batch where it is recorded, and nothing where it is launched."""

    def forward(self, images):
        if self.training and torch.cuda.is_current_stream_capturing():
            torch.empty(len(images), 1 << 20, device=images.device)
        return super().forward(images)


def test_memory_that_runs_out_in_a_recording_is_rescued(make_trainer):
    """The step is repeated in halves, whose recording then fits."""
    trainer = make_trainer(
        model=Grows(), device="cuda", images=IMAGES, optim=OptimConfig(epochs=1, batch_size=BATCH), cuda_graph="on"
    )
    trainer.rescue = rescue_of(trainer, halvings(trainer.plan))
    trainer.rescue.allocate_state()
    torch.nn.Linear(8, 8, device="cuda")(torch.ones(8, 8, device="cuda")).sum().backward()  # cuBLAS's two workspaces
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (56 << 20)) / total)
    try:
        trainer.fit()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    (event,) = trainer.rescue.events
    assert event["step"] == recorded.WARM_UP + 1 and trainer.plan.micro_batch_size == 8
    assert trainer.progress.step == 7 and trainer.step.graph._graph is not None and not trainer.step.graph.failed


def test_a_recording_gives_its_memory_up_where_a_tail_would_not_fit_beside_it(make_trainer, monkeypatch, replays):
    launched = trained(make_trainer, "launched", "launched")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (0, 1 << 36))
    replayed = trained(make_trainer, "replayed", "on")
    assert len(replays) == 12 - recorded.WARM_UP
    same_run(replayed, launched)
    events = [row for row in rows_of(replayed, "event") if row.get("event") == "cuda_graph"]
    assert [event["step"] for event in events] == [recorded.WARM_UP + 1, 8]  # again in the second epoch


def test_a_checkpoint_goes_on_with_and_without_a_recording(make_trainer):
    """It holds plain rates, and is the same run either way."""
    ways = {}
    for name, first, second in (("launched", "off", "off"), ("given up", "on", "off"), ("taken up", "off", "on")):
        trainer = trained(make_trainer, name, first)
        newest = checkpoint_to_resume(trainer.folder.path, trainer.folder.checkpoints)
        groups = read_state(newest / "trainer.pt")["optimizer"]["param_groups"]
        assert all(type(group["lr"]) is float and not group["capturable"] for group in groups)
        again = make_trainer(
            name, model=Net(), device="cuda", images=IMAGES, cuda_graph=second, log=LogConfig(every=3),
            optim=OptimConfig(epochs=3, batch_size=BATCH, lr=0.01),
        )  # fmt: skip
        again.checkpointer.restore(newest, read_state(newest / "trainer.pt"))
        again._train_epoch()
        ways[name] = [parameter.detach().clone() for parameter in again.model.parameters()]
    for name in ("given up", "taken up"):
        for ours, theirs in zip(ways[name], ways["launched"], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_states_that_moved_are_recorded_anew(make_trainer, replays):
    """A search for a rate puts the optimizer's states back: as other tensors than were recorded."""
    trainer = trained(make_trainer, "a", "on", optim={"schedule": "constant"})
    before, weights = kept(trainer), [p.detach().clone() for p in trainer.model.parameters()]
    ends = []
    for _ in range(2):
        torch.cuda.manual_seed(2)
        trainer._train_epoch()
        ends.append([p.detach().clone() for p in trainer.model.parameters()])
        put_back(trainer, before)
    for first, second, start in zip(*ends, weights, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-6)
        assert not torch.equal(first, start)
    events = [row for row in rows_of(trainer, "event") if row.get("event") == "cuda_graph"]
    assert len(events) == 2
