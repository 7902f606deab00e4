"""Each loss is its library's or its formula, for hard and soft labels, smoothed, weighted, in parts, planned."""

import pytest
import torch
import torch.nn.functional as F
from timm.loss import BinaryCrossEntropy
from torchvision.ops import sigmoid_focal_loss

from archs import AuxiliaryOutput
from engine.config import ConfigError, OptimConfig
from engine.step.loss import LossTerms, loss_and_hits

WEIGHTS = torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64)
LABELS = torch.tensor([0, 1, 2, 2, 1, 0])
LOGITS = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
MIXED = F.one_hot(LABELS, 3) * 0.7 + F.one_hot(LABELS.flip(0), 3) * 0.3
LOSSES = [{}, {"loss": "bce"}, {"loss": "bce", "bce_threshold": 0.2}, {"loss": "focal"}]


def summed(labels, smoothing=0.0, weights=None, logits=LOGITS, **fields) -> torch.Tensor:
    terms = LossTerms.of(OptimConfig(**fields), weights)
    return loss_and_hits(logits, labels, torch.ones(len(labels)), smoothing, terms)[0]


@pytest.mark.parametrize("threshold", [None, 0.2])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_bce_is_timms(smoothing, threshold):
    theirs = BinaryCrossEntropy(smoothing, threshold, weight=WEIGHTS)
    expected = theirs(LOGITS, LABELS) * len(LABELS)
    fields = {"loss": "bce", "bce_threshold": threshold}
    torch.testing.assert_close(summed(LABELS, smoothing, WEIGHTS, **fields), expected)
    soft = BinaryCrossEntropy(0.0, threshold)(LOGITS, MIXED.double()) * len(LABELS)
    torch.testing.assert_close(summed(MIXED, **fields), soft)


def test_focal_of_two_classes_is_torchvisions():
    pairs, labels = LOGITS[:, :2], LABELS % 2
    theirs = sigmoid_focal_loss(pairs[:, 1] - pairs[:, 0], labels.double(), alpha=-1, gamma=1.5, reduction="sum")
    torch.testing.assert_close(summed(labels, logits=pairs, loss="focal", focal_gamma=1.5), theirs)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("labels", [LABELS, MIXED])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_focal_without_focus_is_cross_entropy(labels, weights, smoothing):
    plain = summed(labels.double() if labels.ndim == 2 else labels, smoothing, weights)
    torch.testing.assert_close(summed(labels, smoothing, weights, loss="focal", focal_gamma=0.0), plain)


@pytest.mark.parametrize("fields", LOSSES)
def test_gradients_are_right_and_finite_where_a_guess_is_certain(fields):
    terms = LossTerms.of(OptimConfig(**fields))
    logits = LOGITS.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda given: terms.losses(given, LABELS, 0.1), logits)
    certain = torch.tensor([[80.0, -80.0, 0.0]], dtype=torch.float32, requires_grad=True)
    terms.losses(certain, torch.tensor([0]), 0.0).sum().backward()
    assert certain.grad.isfinite().all()


@pytest.mark.parametrize("fields", LOSSES)
def test_auxiliary_heads_have_the_same_loss(fields):
    other, labels = LOGITS.flip(0), MIXED.double()
    output = AuxiliaryOutput(LOGITS, (other,), (0.3,))
    whole, _ = loss_and_hits(output, labels, torch.ones(6), 0.1, LossTerms.of(OptimConfig(**fields)))
    parts = [summed(labels, 0.1, logits=one, **fields) for one in (LOGITS, other)]
    torch.testing.assert_close(whole, parts[0] + 0.3 * parts[1])


@pytest.mark.parametrize("fields", LOSSES[1:])
@pytest.mark.parametrize("way", [{}, {"ema": 0.9}, {"sam": 0.05}], ids=["plain", "ema", "sam"])
def test_micro_batches_do_not_change_a_step(make_trainer, fields, way):
    """In one piece, in four, and compiled nowhere: the loss is outside of the graph."""
    results = []
    for micro in (0, 4):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(108, 2))
        model.blocks = lambda: iter(())
        optim = OptimConfig(epochs=1, batch_size=16, optimizer="sgd", lr=0.1, **fields, **way)
        trainer = make_trainer(f"{micro}", model, micro=micro, optim=optim)
        assert trainer.step.terms.kind == fields["loss"]
        trainer.fit()
        results.append({name: tensor.clone() for name, tensor in trainer.model.state_dict().items()})
    for name, tensor in results[0].items():
        torch.testing.assert_close(results[1][name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"bce_threshold": 0.2}, "--optim.bce-threshold has no effect without --optim.loss bce"),
        ({"loss": "bce", "bce_threshold": 1.0}, "--optim.bce-threshold must be in"),
        ({"focal_gamma": 1.0}, "--optim.focal-gamma has no effect without --optim.loss focal"),
        ({"loss": "focal", "focal_gamma": -1.0}, "--optim.focal-gamma must be from 0 to 10"),
    ],
)
def test_what_a_loss_does_not_read_is_refused(fields, told):
    with pytest.raises(ConfigError, match=told):
        OptimConfig(**fields)
