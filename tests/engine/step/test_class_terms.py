"""The loss with weights of classes and shifted logits: torch's own, whatever the split."""

import pytest
import torch
import torch.nn.functional as F

from engine.config import OptimConfig
from engine.step.loss import LossTerms, loss_and_hits

WEIGHTS, SHIFT = torch.tensor([0.5, 1.0, 4.0]), torch.tensor([-0.1, -1.0, -3.0])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_losses_are_torchs(smoothing):
    torch.manual_seed(0)
    logits, labels, counts = torch.randn(6, 3), torch.tensor([0, 1, 2, 2, 1, 0]), torch.ones(6)
    loss, hits = loss_and_hits(logits, labels, counts, smoothing, LossTerms(WEIGHTS, SHIFT))
    expected = F.cross_entropy(logits + SHIFT, labels, WEIGHTS, reduction="sum", label_smoothing=smoothing)
    torch.testing.assert_close(loss, expected)
    assert hits == (logits.argmax(1) == labels).sum()  # without the shift
    soft, _ = loss_and_hits(logits, F.one_hot(labels, 3).float(), counts, smoothing, LossTerms(WEIGHTS, SHIFT))
    torch.testing.assert_close(soft, expected)


def test_auxiliary_losses_have_the_terms_too():
    from archs import AuxiliaryOutput

    logits, extra, labels = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    output = AuxiliaryOutput(logits, (extra,), (0.4,))
    loss, _ = loss_and_hits(output, labels, torch.ones(4), 0.0, LossTerms(WEIGHTS))
    parts = [F.cross_entropy(one, labels, WEIGHTS, reduction="sum") for one in (logits, extra)]
    torch.testing.assert_close(loss, parts[0] + 0.4 * parts[1])


@pytest.mark.parametrize("optim", [{}, {"sam": 0.05}], ids=["sgd", "sam"])
def test_micro_batches_do_not_change_a_step(make_trainer, optim):
    """The weights' mean is 1 over the training images, not over a micro-batch: the parts add up to the whole."""
    from torch import nn

    results = []
    for micro in (0, 4):
        torch.manual_seed(0)
        trainer = make_trainer(
            str(micro),
            nn.Sequential(nn.Flatten(), nn.Linear(108, 2)),
            micro=micro,
            optim=OptimConfig(epochs=1, batch_size=16, optimizer="sgd", lr=0.1, **optim),
        )
        trainer.step.terms = LossTerms(torch.tensor([0.3, 2.0]), torch.tensor([-0.2, -2.0]))
        trainer.fit()
        results.append({name: tensor.clone() for name, tensor in trainer.model.state_dict().items()})
    for name, tensor in results[0].items():
        torch.testing.assert_close(results[1][name], tensor, rtol=1e-5, atol=1e-6)
