"""What a step minimises: the summed cross-entropy of the images that count."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def loss_and_hits(output, labels: Tensor, weights: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """(summed loss, number of right guesses) of a micro-batch; images of weight 0 do not count.

    labels    int64 [N], or the classes' shares of each image, float32 [N, classes]: then the largest is the right guess
    output    logits [N, classes], or an AuxiliaryOutput whose auxiliary losses are added with the paper's weights
    """
    logits = getattr(output, "logits", output)
    losses = F.cross_entropy(logits.float(), labels, reduction="none", label_smoothing=smoothing)
    for auxiliary, share in zip(getattr(output, "auxiliary", ()), getattr(output, "weights", ()), strict=True):
        extra = F.cross_entropy(auxiliary.float(), labels, reduction="none", label_smoothing=smoothing)
        losses = losses + share * extra
    right = labels.argmax(dim=1) if labels.ndim == 2 else labels
    hits = (logits.detach().argmax(dim=1) == right) * weights
    return torch.where(weights > 0, losses * weights, 0.0).sum(), hits.sum()
