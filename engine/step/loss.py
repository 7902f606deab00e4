"""What a step minimises: the summed loss of the images that count."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.config import OptimConfig


@dataclass(frozen=True)
class Distillation:
    """What a network learns from another one's logits."""

    mode: str
    """logits or hard."""
    temperature: float
    weight: float
    """Share of the loss."""

    def losses(self, logits: Tensor, taught: Tensor) -> Tensor:
        """Of each image, [N]; both [N, classes].

        T² · KL(teacher ‖ student) of logits over T, whose gradients do not shrink with T (Hinton et al. 2015,
        arXiv:1503.02531, section 2), or cross-entropy with the teacher's guess (Touvron et al. 2020, arXiv:2012.12877,
        equation 3).
        """
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.mode == "hard":
            return F.cross_entropy(logits, taught.argmax(dim=1), reduction="none")
        ours, theirs = (F.log_softmax(one / self.temperature, dim=1) for one in (logits, taught.to(logits.dtype)))
        return F.kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=1) * self.temperature**2


@dataclass(frozen=True)
class LossTerms:
    """Which loss, and what it does about classes of unlike size."""

    weights: Tensor | None = None
    """float32 [classes], what an image of each class counts; their mean over the training images is 1."""
    shift: Tensor | None = None
    """float32 [classes], added to the logits before the loss."""
    kind: str = "cross-entropy"
    """Of engine.config.optim.LOSSES."""
    threshold: float | None = None
    """bce: shares of a class above it count as 1, others as 0."""
    gamma: float = 2.0
    """focal: exponent of what is missing to certainty."""
    distillation: Distillation | None = None

    @classmethod
    def of(cls, optim: OptimConfig, weights: Tensor | None = None, shift: Tensor | None = None) -> LossTerms:
        """The terms that a run's description names."""
        return cls(weights, shift, optim.loss, optim.bce_threshold, optim.focal_gamma)

    def losses(self, logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
        """The loss of each image, [N], at least float32; labels as in `loss_and_hits`."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.shift is not None:
            logits = logits + self.shift
        if self.kind == "cross-entropy":
            return F.cross_entropy(logits, labels, self.weights, reduction="none", label_smoothing=smoothing)
        classes = logits.shape[1]
        shares = F.one_hot(labels, classes) if labels.ndim == 1 else labels
        shares = shares.to(logits.dtype) * (1 - smoothing) + smoothing / classes
        return self._bce(logits, shares) if self.kind == "bce" else self._focal(logits, shares)

    def _bce(self, logits: Tensor, shares: Tensor) -> Tensor:
        """Binary cross-entropy of each class, their mean (Beyer et al. 2020, arXiv:2006.07159; as in timm's A1-A3)."""
        if self.threshold is not None:
            shares = (shares > self.threshold).to(logits.dtype)
        return F.binary_cross_entropy_with_logits(logits, shares, self.weights, reduction="none").mean(dim=1)

    def _focal(self, logits: Tensor, shares: Tensor) -> Tensor:
        """-Σ share · (1 - p)^γ · log p, over softmax's p (Lin et al. 2017, arXiv:1708.02002, equation 4)."""
        logs = F.log_softmax(logits, dim=1)
        terms = shares * (1 - logs.exp()).clamp(min=0.0) ** self.gamma * -logs
        return (terms if self.weights is None else terms * self.weights).sum(dim=1)


PLAIN = LossTerms()


def loss_and_hits(
    output,
    labels: Tensor,
    weights: Tensor,
    smoothing: float,
    terms: LossTerms = PLAIN,
    taught: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(summed loss, number of right guesses) of a micro-batch; images of weight 0 do not count.

    labels    int64 [N], or the classes' shares of each image, float32 [N, classes]: then the largest is the right guess
    terms     which loss, weights of classes, a shift of the logits; a guess is made without the shift
    taught    a teacher's logits [N, classes], which the network's own logits learn; auxiliary heads have the labels
    output    logits [N, classes], or an AuxiliaryOutput whose auxiliary losses are added with the paper's weights
    """
    logits = getattr(output, "logits", output)
    losses = terms.losses(logits, labels, smoothing)
    for auxiliary, share in zip(getattr(output, "auxiliary", ()), getattr(output, "weights", ()), strict=True):
        extra = terms.losses(auxiliary, labels, smoothing)
        losses = losses + share * extra
    if taught is not None and (part := terms.distillation) is not None:
        losses = (1 - part.weight) * losses + part.weight * part.losses(logits, taught)
    right = labels.argmax(dim=1) if labels.ndim == 2 else labels
    hits = (logits.detach().argmax(dim=1) == right) * weights
    return torch.where(weights > 0, losses * weights, 0.0).sum(), hits.sum()
