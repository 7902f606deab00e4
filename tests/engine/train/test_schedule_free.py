"""A schedule-free run evaluates, keeps and checkpoints the average, and trains on from where gradients are taken."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import schedulefree
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from engine.config import LogConfig, OptimConfig
from engine.recovery.checkpoint import checkpoint_folders, checkpoint_to_resume, read_state
from tests.engine.conftest import TinyNet
from tests.engine.train.test_trainer import StopAfter, assert_same, rows, weights

FREE = OptimConfig(epochs=3, batch_size=16, lr=0.02, optimizer="schedule-free", weight_decay=0.01)
LAST = LogConfig(every=1, save_best=False, keep_checkpoints=0)


def reference(trainer, norm: bool, epochs: int = 3) -> nn.Module:
    """By hand, with the authors' class, which is switched at the end, and statistics from three batches there."""
    torch.manual_seed(0)
    model = TinyNet(dropout=0.0, norm=norm)
    groups = [{"params": [one for one in model.parameters() if one.ndim > 1], "weight_decay": 0.01}]
    groups += [{"params": [one for one in model.parameters() if one.ndim == 1], "weight_decay": 0.0}]
    optimizer = schedulefree.SGDScheduleFree(groups, lr=0.5, momentum=0.9)
    optimizer.train()
    for epoch in range(epochs):
        for batch in trainer.train_loader.epoch(epoch):
            optimizer.zero_grad()
            F.cross_entropy(model(batch.images), batch.labels).backward()
            optimizer.step()
    optimizer.eval()
    torch.optim.swa_utils.update_bn((batch.images for batch in trainer.train_loader.epoch(epochs - 1)), model)
    return model.eval()


@pytest.mark.parametrize("micro", [0, 8])
def test_what_is_evaluated_and_kept_is_the_average(make_trainer, micro):
    torch.manual_seed(0)
    optim = replace(FREE, optimizer="schedule-free-sgd", lr=0.5)
    trainer = make_trainer(model=TinyNet(dropout=0.0, norm=not micro), optim=optim, log=LAST, micro=micro)
    trainer.fit()
    assert trainer.plan.accumulation == (2 if micro else 1)
    expected = reference(trainer, norm=not micro)
    kept = load_file(trainer.folder.weights)
    for name, tensor in expected.state_dict().items():
        if "tracked" not in name:
            torch.testing.assert_close(kept[name], tensor, rtol=1e-4, atol=1e-6, msg=name)
    images = torch.cat([batch.images for batch in trainer.val_loader.epoch(0)])
    labels = torch.cat([batch.labels for batch in trainer.val_loader.epoch(0)])
    loss = F.cross_entropy(expected(images), labels).item()
    assert rows(trainer, "epoch")[-1]["val_loss"] == pytest.approx(loss, rel=1e-4)
    live = weights(trainer)
    assert (live["stem.weight"] - kept["stem.weight"]).abs().max() > 1e-4


def test_evaluations_change_nothing(make_trainer):
    """Weights, statistics, momenta and generator are, bit for bit, those of a run that is not evaluated."""
    watched, blind = (make_trainer(name, optim=FREE, log=LAST) for name in ("watched", "blind"))
    blind.point.in_place = lambda measured=True: nullcontext()
    generators = []
    for trainer in (watched, blind):
        torch.manual_seed(5)
        trainer.fit()
        generators.append(torch.get_rng_state())
    assert_same(weights(watched), weights(blind))
    assert torch.equal(*generators)
    assert [row["loss"] for row in rows(watched, "step")] == [row["loss"] for row in rows(blind, "step")]


def test_a_checkpoint_holds_both(make_trainer):
    """The weights to go on from, and those to evaluate."""
    trainer = make_trainer(optim=FREE, log=LAST)
    trainer.fit()
    state = read_state(checkpoint_folders(trainer.folder.checkpoints)[-1] / "trainer.pt")
    assert_same(state["model"], weights(trainer))
    assert_same(state["average"]["tensors"], load_file(trainer.folder.weights))


@pytest.mark.parametrize("optimizer", ["schedule-free", "schedule-free-sgd"])
def test_stopped_and_resumed_equals_never_stopped(make_trainer, optimizer):
    optim = OptimConfig(epochs=3, batch_size=16, lr=0.05, optimizer=optimizer, warmup_epochs=1)
    whole = make_trainer("whole", optim=optim)
    whole.fit()
    first = make_trainer("parts", optim=optim)
    first.train_loader = StopAfter(first.train_loader, 1, 1)
    with first.interrupt:
        first.fit()
    second = make_trainer("parts", optim=optim)
    second.resume(checkpoint_to_resume(second.folder.path, second.folder.checkpoints))
    assert second.progress.step == 5
    second.fit()
    assert_same(weights(whole), weights(second))
    assert_same(load_file(whole.folder.weights), load_file(second.folder.weights))
    assert [row["val_loss"] for row in rows(whole, "epoch")] == [row["val_loss"] for row in rows(second, "epoch")]


def test_frozen_statistics_stay(make_trainer):
    """torch's own update_bn would measure them anew."""
    from engine.step.finetune import FROZEN

    model = TinyNet()
    model.norm.__dict__[FROZEN] = True
    model.norm.running_mean.fill_(0.25)
    trainer = make_trainer(model=model, optim=FREE, log=LAST)
    with trainer.point.in_place():
        assert model.norm.running_mean.eq(0.25).all()
    model.norm.__dict__.pop(FROZEN)
    with trainer.point.in_place():
        assert not model.norm.running_mean.eq(0.25).any()
    assert model.norm.running_mean.eq(0.25).all()
