"""What every network here is: a stem, stages of blocks and a head, in that order.

The order is kept as data, so that recompute, the planner and the tests can walk a network without
knowing which one it is.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from torch import Tensor, nn

ImageSize = int | tuple[int, int]
"""Side of square images in pixels, or (height, width)."""


def sides(image_size: ImageSize) -> tuple[int, int]:
    """(height, width) in pixels."""
    return image_size if isinstance(image_size, tuple) else (image_size, image_size)


class AuxiliaryOutput(NamedTuple):
    """What a network with auxiliary heads returns while it trains; in evaluation it returns the logits alone."""

    logits: Tensor
    """[N, classes], from the main head."""
    auxiliary: tuple[Tensor, ...]
    """One [N, classes] an auxiliary head, from the shallowest to the deepest."""
    weights: tuple[float, ...]
    """Weight of each auxiliary head's loss in the sum; the main head's weight is 1."""


class Classifier(nn.Module):
    """images [N, C, H, W] float, in any memory format (channels-last is the fast one) -> logits [N, num_classes].

    stem    images -> features, as one module
    stages  `nn.Sequential` of stages, each an `nn.Sequential` of blocks
    head    features [N, C, H', W'] (or tokens [N, T, C]) -> logits; its last layer is called `fc`
    """

    arch: str = "this network"
    """The name it was built by; `archs.build` sets it."""
    minimum_size: int = 1
    """The smallest side of an image in pixels; `archs.build` sets it."""
    fixed_size: tuple[int, int] | None = None
    """The only height and width that it takes, for networks with one weight a place; None where any size will do."""

    def __init__(self, stem: nn.Module, stages: Iterable[nn.Sequential], head: nn.Module) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.Sequential(*stages)
        self.head = head

    def forward(self, images: Tensor) -> Tensor | AuxiliaryOutput:
        self.refuse_size(*images.shape[-2:])
        return self.head(self.stages(self.stem(images)))

    def refuse_size(self, height: int, width: int) -> None:
        """Raise ValueError for images of a size in pixels that the network does not take, naming the one it does."""
        if self.fixed_size is not None and (height, width) != self.fixed_size:
            built = "x".join(str(side) for side in self.fixed_size)
            raise ValueError(
                f"{self.arch} was built for {built} pixels, not ({height}, {width}); build it with that image_size"
            )
        if min(height, width) < self.minimum_size:
            least = self.minimum_size
            raise ValueError(f"{self.arch} needs images of at least {least}x{least} pixels, not ({height}, {width})")

    def blocks(self) -> Iterator[nn.Module]:
        """The units of recompute between the images and the head, in execution order.

        Each takes one tensor and returns one; `head` of their composition is `forward` (an auxiliary
        head hangs beside that chain). Each is a module that `forward` itself calls, so replacing a
        unit's `forward` changes the network's.
        """
        yield self.stem
        for stage in self.stages:
            yield from stage.children()
