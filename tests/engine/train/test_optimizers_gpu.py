"""A few steps by every optimizer on a GPU, in both 16-bit precisions: the losses of the same steps on a CPU."""

import json

import pytest
import torch

from engine.config import LogConfig, OptimConfig
from engine.config.optimizers import OPTIMIZERS
from engine.recovery.checkpoint import checkpoint_to_resume
from tests.engine.conftest import TinyNet

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]


def losses(trainer) -> list[float]:
    rows = [json.loads(line) for line in trainer.folder.metrics.read_text().splitlines()]
    return [row["loss"] for row in rows if row["kind"] == "step"] + [
        row["val_loss"] for row in rows if row["kind"] == "epoch"
    ]


def assert_as_on_a_cpu(make_trainer, optim, precision):
    """The losses of an epoch are those of a CPU in fp32; returns the GPU's trainer."""
    ended = []
    for place, kind, device in (("cpu", "fp32", "cpu"), ("gpu", precision, "cuda")):
        torch.manual_seed(0)
        trainer = make_trainer(
            place, TinyNet(dropout=0.0), optim=optim, precision=kind, device=device, log=LogConfig(every=1)
        )
        trainer.fit()
        ended.append(losses(trainer))
    assert ended[1] == pytest.approx(ended[0], abs=0.03)
    assert len({round(loss, 4) for loss in ended[1]}) > 3
    return trainer


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_as_on_a_cpu(make_trainer, name, precision):
    optim = OptimConfig(epochs=1, batch_size=8, lr=0.003, optimizer=name, weight_decay=0.01)
    trainer = assert_as_on_a_cpu(make_trainer, optim, precision)
    assert all(parameter.is_cuda and parameter.dtype == torch.float32 for parameter in trainer.model.parameters())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_resumed_run_goes_on_bit_for_bit(make_trainer, name):
    """States come back where they were and as they were: torch moves some of them to the GPU as it loads."""
    optim = OptimConfig(epochs=2, batch_size=16, lr=0.01, optimizer=name)
    whole = make_trainer("whole", optim=optim, device="cuda")
    whole.fit()
    parts = make_trainer("parts", optim=optim, device="cuda", log=LogConfig(every=2, keep_checkpoints=0))
    parts.fit()
    again = make_trainer("parts", optim=optim, device="cuda")
    first = sorted(parts.folder.checkpoints.iterdir())[0]
    again.resume(checkpoint_to_resume(first, parts.folder.checkpoints))
    assert again.progress.epoch == 1
    again.fit()
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("loss", [{"loss": "bce", "bce_threshold": 0.2}, {"loss": "focal"}], ids=["bce", "focal"])
def test_every_loss_as_on_a_cpu(make_trainer, loss, precision):
    optim = OptimConfig(epochs=1, batch_size=8, lr=0.003, label_smoothing=0.1, **loss)
    assert_as_on_a_cpu(make_trainer, optim, precision)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("mode", ["logits", "hard"])
def test_lessons_as_on_a_cpu(make_trainer, tmp_path, mode, precision):
    """The teacher's logits are computed in the first epoch's steps and, in another run of it, read from the host."""
    from engine.step.distill.kept_logits import KeptLogits, LogitsOf
    from engine.step.loss import Distillation, LossTerms
    from engine.step.wrap import AUTOCAST_DTYPES

    optim = OptimConfig(epochs=1, batch_size=8, lr=0.003)
    ended = {}
    for place, kind, device in (("cpu", "fp32", "cpu"), ("gpu", precision, "cuda"), ("kept", precision, "cuda")):
        torch.manual_seed(5)
        teacher = TinyNet(dropout=0.0).eval().requires_grad_(False)
        torch.manual_seed(0)
        trainer = make_trainer(
            place, TinyNet(dropout=0.0), optim=optim, precision=kind, device=device, log=LogConfig(every=1)
        )
        compute = LogitsOf(lambda taught_by=teacher: taught_by, torch.device(device), AUTOCAST_DTYPES[kind], lambda: 8)
        kept = KeptLogits(compute, tmp_path / device, trainer.progress, trainer.steps_per_epoch, 8, 2)
        trainer.step.terms = LossTerms(distillation=Distillation(mode, 3.0, 0.5))
        trainer.step.teacher = kept
        trainer.fit()
        ended[place] = losses(trainer), kept.read
    assert ended["gpu"][0] == pytest.approx(ended["cpu"][0], abs=0.03)
    assert ended["kept"][0] == ended["gpu"][0] and ended["kept"][1] == trainer.steps_per_epoch
