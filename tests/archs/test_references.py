"""torchvision's and timm's weights in our networks, for every pair there is: the same outputs and gradients."""

import pytest
import torch
from torch import Tensor

import archs

PAIRS = [(name, source) for name in archs.names() for source in archs.lookup(name).sources]


def relative_error(actual: Tensor, expected: Tensor) -> float:
    assert expected.norm() > 0
    return float((actual - expected).detach().norm() / expected.detach().norm())


@pytest.mark.parametrize(("name", "source"), PAIRS, ids=[f"{name}-{source}" for name, source in PAIRS])
def test_logits_and_input_gradients_are_the_reference_s(name, source, loaded, small_images):
    images = small_images(name, batch=2, dtype=torch.float64)
    ours, theirs = (model.eval() for model in loaded(name, source, images.shape[-1]))
    direction = torch.randn(2, 10, dtype=torch.float64)
    logits, gradients = [], []
    for model in (ours, theirs):
        seen = images.clone().requires_grad_()
        logits.append(model(seen))
        (logits[-1] * direction).sum().backward()
        gradients.append(seen.grad)
    assert relative_error(*logits) <= 1e-10
    assert relative_error(*gradients) <= 1e-8
