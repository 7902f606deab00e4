"""What every network here is: a stem, stages of blocks and a head, in that order.

The order is kept as data, so that recompute, the planner and the tests can walk a network without
knowing which one it is.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from torch import Tensor, nn


class AuxiliaryOutput(NamedTuple):
    """What a network with auxiliary heads returns while it trains; in evaluation it returns the logits alone."""

    logits: Tensor
    """[N, classes], from the main head."""
    auxiliary: tuple[Tensor, ...]
    """One [N, classes] an auxiliary head, from the shallowest to the deepest."""
    weights: tuple[float, ...]
    """Weight of each auxiliary head's loss in the sum; the main head's weight is 1."""


class Classifier(nn.Module):
    """images [N, 3, H, W] float, in any memory format (channels-last is the fast one) -> logits [N, num_classes].

    stem    images -> features, as one module
    stages  `nn.Sequential` of stages, each an `nn.Sequential` of blocks
    head    features [N, C, H', W'] -> logits
    """

    def __init__(self, stem: nn.Module, stages: Iterable[nn.Sequential], head: nn.Module) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.Sequential(*stages)
        self.head = head

    def forward(self, images: Tensor) -> Tensor | AuxiliaryOutput:
        return self.head(self.stages(self.stem(images)))

    def blocks(self) -> Iterator[nn.Module]:
        """The units of recompute between the images and the head, in execution order.

        Each takes one tensor and returns one; `head` of their composition is `forward` (an auxiliary
        head hangs beside that chain). Each is a module that `forward` itself calls, so replacing a
        unit's `forward` changes the network's.
        """
        yield self.stem
        for stage in self.stages:
            yield from stage.children()
