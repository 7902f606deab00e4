"""What the plain chains share, the networks without shortcuts: their units of recompute and their heads."""

from collections import OrderedDict
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from archs.classifier import Classifier
from archs.layers import relu

HIDDEN = 4096
"""Units of the two hidden linear layers of AlexNet and VGG."""


class PlainNetwork(Classifier):
    """A chain cut at its poolings: the stem and every stage end with one, and each is a unit of recompute.

    Without BatchNorm a layer keeps little but its output, which the next one keeps as its input, so smaller units
    would save nothing; these keep the pooled maps alone, a quarter of the others.
    """

    def blocks(self) -> Iterator[nn.Module]:
        yield self.stem
        yield from self.stages


class GridPool(nn.Module):
    """Average a map over grid x grid windows, and flatten: [N, C, H, W] -> [N, C · grid²].

    A map of that size is only flattened. The windows are those of adaptive average pooling, which overlap or repeat
    where the grid does not divide the map; unlike torch's, the backward pass on a GPU adds in a fixed order.
    """

    def __init__(self, grid: int) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, features: Tensor) -> Tensor:
        for axis in (2, 3):
            side = features.shape[axis]
            if side != self.grid:
                starts = [place * side // self.grid for place in range(self.grid)]
                ends = [-(-(place + 1) * side // self.grid) for place in range(self.grid)]
                windows = [
                    features.narrow(axis, start, end - start).mean(axis, keepdim=True)
                    for start, end in zip(starts, ends, strict=True)
                ]
                features = torch.cat(windows, axis)
        return features.flatten(1)


class GridHead(nn.Sequential):
    """Average to a grid, then three linear layers over all its values: [N, channels, H, W] -> [N, classes].

    dropout      at both hidden layers; 0 leaves it out
    drop_inputs  drop what goes into the two hidden layers, not what comes out of them
    """

    fc: nn.Linear

    def __init__(
        self, channels: int, grid: int, num_classes: int, dropout: float = 0.0, *, drop_inputs: bool = False
    ) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict(pool=GridPool(grid))
        values = channels * grid**2
        for position in (1, 2):
            hidden = OrderedDict([(f"fc{position}", nn.Linear(values, HIDDEN)), (f"act{position}", relu())])
            if dropout:
                hidden[f"dropout{position}"] = nn.Dropout(dropout)
                if drop_inputs:
                    hidden.move_to_end(f"dropout{position}", last=False)
            layers |= hidden
            values = HIDDEN
        layers["fc"] = nn.Linear(values, num_classes)
        super().__init__(layers)


class ConvHead(nn.Sequential):
    """A 1x1 convolution to one map a class, and the map's mean: [N, channels, H, W] -> [N, classes].

    dropout    of the features; 0 leaves it out
    rectified  a ReLU between the convolution and the mean
    """

    fc: nn.Conv2d

    def __init__(self, channels: int, num_classes: int, dropout: float = 0.0, *, rectified: bool = False) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if dropout:
            layers["dropout"] = nn.Dropout(dropout)
        layers["fc"] = nn.Conv2d(channels, num_classes, 1)
        if rectified:
            layers["act"] = relu()
        layers |= OrderedDict(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(1))
        super().__init__(layers)
