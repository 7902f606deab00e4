"""The training loop on a tiny network: exact gradients, stops, resume, divergence."""

import json
import signal
import sys
import time

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from engine.config import ConfigError, LogConfig, OptimConfig
from engine.recovery.checkpoint import checkpoint_folders, checkpoint_to_resume
from engine.step.loss import loss_and_hits
from engine.train.trainer import Diverged


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def assert_same(left: dict, right: dict) -> None:
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=0, atol=0, msg=f"{name} differs")


def rows(trainer, kind: str) -> list[dict]:
    lines = trainer.folder.metrics.read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


class StopAfter:
    """A loader that delivers `signal_number` to this process after `step` of `epoch`, as Ctrl-C would."""

    def __init__(self, loader, epoch: int, step: int, number: signal.Signals = signal.SIGTERM) -> None:
        self._loader, self._at, self._number = loader, (epoch, step), number

    def __getattr__(self, name):
        return getattr(self._loader, name)

    def __len__(self):
        return len(self._loader)

    def epoch(self, epoch, start_step=0):
        for step, batch in enumerate(self._loader.epoch(epoch, start_step), start_step):
            if (epoch, step) == self._at:
                signal.raise_signal(self._number)
            yield batch


def test_a_run_learns_and_leaves_its_rows(make_trainer):
    trainer = make_trainer(optim=OptimConfig(epochs=12, batch_size=16, lr=0.03))
    trainer.fit()
    epochs = rows(trainer, "epoch")
    assert [row["epoch"] for row in epochs] == list(range(1, 13))
    assert all(row["train_images"] == 44 and row["val_images"] == 30 for row in epochs)
    assert epochs[-1]["train_loss"] < 0.8 * epochs[0]["train_loss"]
    assert trainer.progress.best_accuracy == max(row["val_accuracy"] for row in epochs)
    assert trainer.folder.weights.is_file()
    assert len(checkpoint_folders(trainer.folder.checkpoints)) == 2
    assert all(row["lr"] == 0.03 for row in rows(trainer, "step"))


def test_the_best_weights_are_kept(make_trainer):
    from safetensors.torch import load_file

    trainer = make_trainer(optim=OptimConfig(epochs=6, batch_size=16, lr=0.03))
    kept = {}
    save = trainer._save_weights

    def record():
        kept.update(weights(trainer))
        save()

    trainer._save_weights = record
    trainer.fit()
    assert_same(kept, load_file(trainer.folder.weights))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_step_is_the_mean_over_the_global_batch(make_trainer, smoothing):
    """Against the definition, for a full batch and for the tail of 12 images, in 1 and in 4 micro-batches."""
    results = []
    for micro in (0, 4):
        optim = OptimConfig(epochs=1, batch_size=16, lr=0.1, optimizer="sgd", momentum=0.0, label_smoothing=smoothing)
        torch.manual_seed(3)
        model = TinyLinear()
        trainer = make_trainer(f"micro{micro}", model=model, optim=optim, micro=micro)
        trainer.fit()
        results.append(weights(trainer))
    torch.manual_seed(3)
    reference = TinyLinear()
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1)
    for batch in trainer.train_loader.epoch(0):
        optimizer.zero_grad()
        F.cross_entropy(reference(batch.images), batch.labels, label_smoothing=smoothing).backward()
        optimizer.step()
    for result in results:
        for name, tensor in reference.state_dict().items():
            torch.testing.assert_close(result[name], tensor, rtol=1e-5, atol=1e-6)


class TinyLinear(nn.Module):
    """No BatchNorm, no dropout: micro-batches change nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3 * 36, 2)

    def blocks(self):
        yield self.head

    def forward(self, images):
        return self.head(images.flatten(1))


def test_unreadable_images_do_not_count(make_trainer):
    trainer = make_trainer(unreadable=frozenset({1, 5, 20}), optim=OptimConfig(epochs=1, batch_size=16))
    trainer.fit()
    assert rows(trainer, "epoch")[0]["train_images"] == 41


def test_infinite_pixels_of_weight_zero_do_not_poison():
    logits = torch.tensor([[float("nan"), 1.0], [0.0, 1.0]])
    loss, hits = loss_and_hits(logits, torch.tensor([0, 1]), torch.tensor([0.0, 1.0]), 0.0)
    assert loss.item() == pytest.approx(0.3133, abs=1e-4) and hits.item() == 1


def test_auxiliary_losses_are_added_with_their_weights():
    from archs import AuxiliaryOutput

    logits, extra = torch.randn(4, 3), torch.randn(4, 3)
    labels = torch.tensor([0, 1, 2, 0])
    loss, _ = loss_and_hits(AuxiliaryOutput(logits, (extra,), (0.4,)), labels, torch.ones(4), 0.0)
    expected = F.cross_entropy(logits, labels, reduction="sum") + 0.4 * F.cross_entropy(extra, labels, reduction="sum")
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("stop", [(0, 0), (1, 1), (1, 2), (2, 0)], ids=str)
def test_stopped_and_resumed_equals_never_stopped(make_trainer, stop):
    """Bit for bit, with dropout and BatchNorm, stopped in mid-epoch and at an epoch's last step."""
    whole = make_trainer("whole")
    whole.fit()
    first = make_trainer("parts")
    first.train_loader = StopAfter(first.train_loader, *stop)
    with first.interrupt:
        first.fit()
    assert first.interrupt.exit_code == 143
    assert first.progress.step == stop[0] * 3 + stop[1] + 1
    second = make_trainer("parts")
    second.resume(checkpoint_to_resume(second.folder.path, second.folder.checkpoints))
    second.fit()
    assert_same(weights(whole), weights(second))
    keys = ("epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "train_images")
    for left, right in zip(rows(whole, "epoch"), rows(second, "epoch"), strict=True):
        assert [left[key] for key in keys] == pytest.approx([right[key] for key in keys], rel=1e-12)


def test_killed_after_a_periodic_checkpoint(make_trainer):
    """A kill without warning loses the steps since the last checkpoint that was written and nothing else."""
    log = LogConfig(every=2, checkpoint_steps=2)
    whole = make_trainer("whole", log=log)
    whole.fit()
    first = make_trainer("parts", log=log)

    def die_once_written():
        first.checkpointer.wait()
        raise KeyError("killed")

    step = first.step.take
    first.step.take = lambda batch: die_once_written() if first.progress.step == 5 else step(batch)
    with pytest.raises(KeyError):
        first.fit()
    second = make_trainer("parts", log=log)
    second.resume(checkpoint_to_resume(second.folder.path, second.folder.checkpoints))
    assert second.progress.step == 4 and second.progress.step_in_epoch == 1
    second.fit()
    assert_same(weights(whole), weights(second))


def test_nan_loss_stops_with_step_rate_and_checkpoint(make_trainer, monkeypatch):
    """Also where that checkpoint is still being written."""
    trainer = make_trainer(log=LogConfig(every=2))
    write = trainer.checkpointer._write

    def slowly(*what):
        time.sleep(0.3)
        write(*what)

    monkeypatch.setattr(trainer.checkpointer, "_write", slowly)
    step = trainer.step.take

    def poison(batch):
        if trainer.progress.step == 4:
            trainer.model.head.weight.data.fill_(float("nan"))
        step(batch)

    trainer.step.take = poison
    with pytest.raises(Diverged, match=r"step 5 \(learning rate 0.01, loss scale none\).*step-00000003"):
        trainer.fit()
    assert rows(trainer, "event")[-1]["step"] == 5
    assert [path.name for path in checkpoint_folders(trainer.folder.checkpoints)] == ["step-00000003"]


def test_checkpoint_of_another_network_is_refused(make_trainer):
    first = make_trainer("a", optim=OptimConfig(epochs=1, batch_size=16))
    first.fit()
    second = make_trainer("b", model=TinyLinear(), optim=OptimConfig(epochs=1, batch_size=16))
    with pytest.raises(ConfigError, match="not of this network"):
        second.resume(first.checkpointer.last)


def test_damaged_checkpoint_is_named(make_trainer):
    trainer = make_trainer("a", optim=OptimConfig(epochs=1, batch_size=16))
    trainer.fit()
    (trainer.checkpointer.last / "trainer.pt").write_bytes(b"\x80\x02not a checkpoint")
    with pytest.raises(ConfigError, match="cannot be read"):
        make_trainer("b").resume(trainer.checkpointer.last)


def test_checkpoint_with_code_in_it_is_refused(make_trainer, tmp_path):
    """A pickle that would run a program is not run."""

    class Evil:
        def __reduce__(self):
            return (sys.exit, (3,))

    folder = tmp_path / "step-00000001"
    folder.mkdir()
    torch.save({"format": 1, "evil": Evil()}, folder / "trainer.pt")
    with pytest.raises(ConfigError, match="cannot be read"):
        make_trainer().resume(folder)


def test_host_waits_only_at_log_points(make_trainer, monkeypatch):
    """No .item(), .tolist(), bool() or .cpu() on a tensor between log points."""
    trainer = make_trainer(log=LogConfig(every=100), images=160)
    inside = []

    def watch(name):
        original = getattr(torch.Tensor, name)

        def watched(tensor, *arguments, **keywords):
            if trainer._in_step:
                inside.append(name)
            return original(tensor, *arguments, **keywords)

        monkeypatch.setattr(torch.Tensor, name, watched)

    trainer._in_step = False
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy"):
        watch(name)
    step = trainer.step.take

    def marked(batch):
        trainer._in_step = True
        step(batch)
        trainer._in_step = False

    trainer.step.take = marked
    trainer._train_epoch()
    assert trainer.progress.step == 10
    assert inside == []
    assert [row["step"] for row in rows(trainer, "step")] == [1, 10]


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "recompute"), [("fp32", "none"), ("bf16", "none"), ("bf16", "block")])
def test_the_tail_is_not_compiled_for(make_trainer, precision, recompute):
    """Two epochs with a tail of 12 images: one graph for training, one for evaluation, and no break in either."""
    from torch._dynamo.utils import counters

    counters.clear()
    torch._dynamo.reset()
    options = {"precision": precision, "recompute": recompute}
    trainer = make_trainer(compile="on", optim=OptimConfig(epochs=2, batch_size=16), **options)
    trainer.fit()
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]
