"""Accuracy of a model over a validation split, exact over any number of ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.data.bad_images import BadImage
from engine.data.sources.source import DataError
from engine.step.micro_batches import even_passes


@dataclass(frozen=True)
class Evaluation:
    """Means over the images that count. `confusion[truth, prediction]` is int64, [classes, classes]."""

    loss: float
    top1: float
    top5: float
    count: int
    confusion: Tensor | None
    balanced: float = 0.0
    """Mean of the accuracies of the classes that have images here."""
    macro_f1: float = 0.0
    """Mean of their F1."""

    def score(self, measure: str) -> float:
        """By what weights are the best, the larger the better: accuracy, balanced, macro_f1 or loss."""
        named = {"accuracy": self.top1, "balanced": self.balanced, "macro_f1": self.macro_f1, "loss": -self.loss}
        return named[measure]


@torch.no_grad()
def evaluate(
    model: Callable[[Tensor], Tensor],
    batches: Iterable,
    num_classes: int,
    device: torch.device,
    micro_batch_size: int,
    reduce: Callable[[Tensor], Tensor] = lambda totals: totals,
    confusion: bool = False,
    ranks: int = 1,
) -> Evaluation:
    """Run `model` in eval mode over `batches` (engine.data Batch); images of weight 0 do not count.

    reduce       sums a tensor over the ranks
    confusion    also count [truth, prediction] pairs
    ranks        that make each pass together, as many passes each

    The host waits for the device once, at the end. `top5` is over min(5, classes) guesses. Raises DataError on every
    rank where `batches` does on one.
    """
    totals = torch.zeros(5, dtype=torch.float64, device=device)  # loss, top-1, top-5, images, ranks that lost theirs
    tallies = torch.zeros(3, num_classes, dtype=torch.float64, device=device)  # images, guesses, hits of each class
    pairs = torch.zeros(num_classes * num_classes if confusion else 0, dtype=torch.float64, device=device)
    guesses = min(5, num_classes)
    lost: DataError | None = None
    try:
        for batch in batches:
            for images, labels, weights in passes(batch, micro_batch_size, ranks):
                logits = model(images).float()
                losses = F.cross_entropy(logits, labels, reduction="none")
                best = logits.topk(guesses, dim=1).indices
                hits = best == labels[:, None]
                rows = torch.stack([losses, hits[:, 0].float(), hits.any(dim=1).float(), torch.ones_like(losses)])
                totals[:4] += (torch.where(weights > 0, rows, 0.0) * weights).sum(dim=1, dtype=torch.float64)
                # bincount would wait for the device; sums of zeros and ones are exact in any order
                for place, (where, counted) in enumerate(
                    ((labels, weights), (best[:, 0], weights), (labels, hits[:, 0] * weights))
                ):
                    tallies[place].scatter_add_(0, where, counted.double())
                if confusion:
                    pairs.scatter_add_(0, labels * num_classes + best[:, 0], weights.double())
    except DataError as error:  # the other ranks wait for this one
        lost = error
        totals[4] = 1.0
    totals = reduce(totals)
    loss, top1, top5, count, several = totals.tolist()
    if several:
        raise lost or DataError("the evaluation's images cannot be read on another rank, which says which")
    balanced, macro_f1 = class_means(reduce(tallies))
    matrix = None
    if confusion:
        matrix = reduce(pairs).round().long().reshape(num_classes, num_classes).cpu()
    images = max(1.0, count)
    return Evaluation(loss / images, top1 / images, top5 / images, round(count), matrix, balanced, macro_f1)


def passes(batch: Any, micro_batch_size: int, ranks: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(images, labels, weights) of each forward pass over a rank's share: as many passes as on every other rank.

    A smaller share can be done earlier: it goes on with an image that does not count.
    """
    images, labels, weights = batch.images, batch.labels, batch.weights
    left = even_passes(batch.global_count, ranks, micro_batch_size) if ranks > 1 else 0
    for part in zip(*(tensor.split(micro_batch_size) for tensor in (images, labels, weights)), strict=True):
        left -= 1
        yield part
    for _ in range(left):
        yield images[:1], labels[:1], torch.zeros_like(weights[:1])


def class_means(tallies: Tensor) -> tuple[float, float]:
    """(balanced accuracy, macro F1) over the classes that have images.

    tallies  [3, classes]: images, guesses and hits of each class
    """
    images, guesses, hits = tallies.cpu()
    there = images > 0
    if not there.any():
        return 0.0, 0.0
    recall, f1 = hits / images, 2 * hits / (images + guesses)
    return recall[there].mean().item(), f1[there].mean().item()


def refuse_lost(loader: Any, at_end: bool = False) -> Iterator:
    """The batches of an evaluation. Raises DataError at one whose images have gone.

    at_end  behind the last batch: where each forward pass is one of all ranks
    """
    lost: DataError | None = None
    for batch in loader.epoch(0):
        if batch.gone and lost is None:
            lost = DataError(f"no image of a whole batch in {loader.place} could be read{told(batch.unread)}")
            if not at_end:
                raise lost
        yield batch
    if lost is not None:
        raise lost


def refuse_none(result: Evaluation, loader: Any) -> None:
    """Raise DataError for an evaluation without an image: nothing is right or wrong then."""
    if not result.count:
        raise DataError(f"no readable image in {loader.place}{told(loader.bad_images)}")


def told(images: Sequence[BadImage]) -> str:
    """The first of them, with the reason, at the end of a sentence."""
    return f"; {images[0].path}: {images[0].reason}" if images else ""
