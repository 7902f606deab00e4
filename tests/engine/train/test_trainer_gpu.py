"""The loop on a GPU: precisions, no hidden waits, resume. Run with `make test-gpu`."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from engine.config import LogConfig, OptimConfig
from engine.recovery.checkpoint import checkpoint_to_resume
from engine.step.recompute import Policy
from engine.train.evaluate import evaluate

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]


@pytest.mark.parametrize(
    ("compile", "precision"),
    [
        *(("off", precision) for precision in ("fp32", "fp16", "bf16")),
        ("on", "bf16"),
        *(pytest.param("on", precision, marks=pytest.mark.slow) for precision in ("fp32", "fp16")),
    ],
)
def test_it_learns_in_every_precision(make_trainer, precision, compile):
    optim = OptimConfig(epochs=12, batch_size=16, lr=0.03)
    trainer = make_trainer(device="cuda", precision=precision, compile=compile, optim=optim)
    trainer.fit()
    rows = [json.loads(line) for line in trainer.folder.metrics.read_text().splitlines()]
    losses = [row["train_loss"] for row in rows if row["kind"] == "epoch"]
    assert losses[-1] < 0.8 * losses[0]
    assert (trainer.accelerator.scaler is not None) == (precision == "fp16")
    assert all(parameter.dtype == torch.float32 for parameter in trainer.model.parameters())


WAYS = {
    "fp32": {"precision": "fp32"},
    "fp16": {"precision": "fp16"},
    "bf16": {"precision": "bf16"},
    "average": {"optim": {"ema": 0.9}},
    "average, fp16": {"optim": {"ema": 0.9}, "precision": "fp16"},
    "sharpness-aware": {"optim": {"sam": 0.05}},
    "clipped, fp16": {"optim": {"clip_norm": 1.0}, "precision": "fp16"},
    "blocks": {"recompute": "block"},
    "micro-batches": {"micro": 4},
    "offload": {"policy": Policy(offload=True)},
}


@pytest.mark.parametrize("way", WAYS)
def test_no_step_waits_for_the_device(make_trainer, monkeypatch, way):
    """CUDA itself reports every synchronisation: torch.cuda.set_sync_debug_mode."""
    monkeypatch.setattr("engine.step.offload.SMALLEST", 0)
    given = dict(WAYS[way])
    policy = given.pop("policy", None)
    optim = OptimConfig(epochs=3, batch_size=16, lr=0.01, **given.pop("optim", {}))
    trainer = make_trainer(device="cuda", log=LogConfig(every=1000), images=160, optim=optim, **given)
    if policy is not None:
        trainer.step.switch(replace(trainer.step.plan, policy=policy))
    step = trainer.step.take

    def watched(batch):
        quiet = trainer.progress.step < 2  # the first steps set things up
        torch.cuda.set_sync_debug_mode("default" if quiet else "error")
        try:
            step(batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    trainer.step.take = watched
    trainer._train_epoch()
    assert trainer.progress.step == 10


def test_an_evaluation_waits_once():
    """At its end, confusion matrix included."""
    model = torch.nn.Linear(6, 3).to("cuda")

    def batches():
        for _ in range(3):
            images, labels = torch.randn(8, 6, device="cuda"), torch.zeros(8, dtype=torch.long, device="cuda")
            weights = torch.ones(8, device="cuda")
            torch.cuda.set_sync_debug_mode("error")
            yield SimpleNamespace(images=images, labels=labels, weights=weights)
            torch.cuda.set_sync_debug_mode("default")

    try:
        found = evaluate(model, batches(), 3, torch.device("cuda"), 4, confusion=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert found.count == 24 and found.confusion.sum() == 24 and found.confusion[0].sum() == 24


def test_resume_restores_scaler_and_generators(make_trainer):
    first = make_trainer("a", device="cuda", precision="fp16", optim=OptimConfig(epochs=1, batch_size=16))
    first.fit()
    state = first.accelerator.scaler.state_dict()
    generator = torch.cuda.get_rng_state()
    second = make_trainer("a", device="cuda", precision="fp16", optim=OptimConfig(epochs=1, batch_size=16))
    second.resume(checkpoint_to_resume(second.folder.path, second.folder.checkpoints))
    assert second.accelerator.scaler.state_dict() == state
    assert torch.equal(torch.cuda.get_rng_state(), generator)
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name
