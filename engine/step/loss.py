"""What a step minimises: the summed cross-entropy of the images that count."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class ClassTerms:
    """What a step does about classes of unlike size; nothing where both are None."""

    weights: Tensor | None = None
    """float32 [classes], what an image of each class counts; their mean over the training images is 1."""
    shift: Tensor | None = None
    """float32 [classes], added to the logits before the loss."""

    def losses(self, logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
        """float32 [N], torch's cross-entropy of each image; labels as in `loss_and_hits`."""
        logits = logits.float()
        if self.shift is not None:
            logits = logits + self.shift
        return F.cross_entropy(logits, labels, self.weights, reduction="none", label_smoothing=smoothing)


PLAIN = ClassTerms()


def loss_and_hits(
    output, labels: Tensor, weights: Tensor, smoothing: float, terms: ClassTerms = PLAIN
) -> tuple[Tensor, Tensor]:
    """(summed loss, number of right guesses) of a micro-batch; images of weight 0 do not count.

    labels    int64 [N], or the classes' shares of each image, float32 [N, classes]: then the largest is the right guess
    terms     weights of classes and a shift of the logits; a guess is made without the shift
    output    logits [N, classes], or an AuxiliaryOutput whose auxiliary losses are added with the paper's weights
    """
    logits = getattr(output, "logits", output)
    losses = terms.losses(logits, labels, smoothing)
    for auxiliary, share in zip(getattr(output, "auxiliary", ()), getattr(output, "weights", ()), strict=True):
        extra = terms.losses(auxiliary, labels, smoothing)
        losses = losses + share * extra
    right = labels.argmax(dim=1) if labels.ndim == 2 else labels
    hits = (logits.detach().argmax(dim=1) == right) * weights
    return torch.where(weights > 0, losses * weights, 0.0).sum(), hits.sum()
