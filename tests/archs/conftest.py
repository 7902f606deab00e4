"""What the tests of the networks share: sizes that stay cheap, and weights that show a mistake."""

import pytest
import torch
from torch import Tensor, nn

import archs

# The largest maps of a network without strides cost most: the least that leaves every grid a pixel or more.
SIDES = {"inceptionv3": 75, "inceptionv3_fullres": 13}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def small_images():
    """images(name, batch=4): the smallest cheap images that the network of that name takes, [N, 3, side, side]."""

    def images(name: str, batch: int = 4, dtype: torch.dtype = torch.float32) -> Tensor:
        side = SIDES.get(name, 32)
        return torch.randn(batch, 3, side, side, dtype=dtype)

    return images


@pytest.fixture
def randomise():
    """Give every layer values that a mistake in it would show in.

    BatchNorm away from its start, and convolutions scaled so that the image still counts in the last layer: torch's
    default draw loses it on the way, and the logits are then the biases' alone.
    """

    def change(model: nn.Module) -> nn.Module:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean, std=0.1)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.1)
            elif isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        return model

    return change


@pytest.fixture(params=archs.names())
def name(request) -> str:
    """Every registered network."""
    return request.param
