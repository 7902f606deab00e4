"""torchvision's and timm's weights in our networks, for every pair there is: the same outputs and gradients."""

import torch
from torch import Tensor


def relative_error(actual: Tensor, expected: Tensor) -> float:
    assert expected.norm() > 0
    return float((actual - expected).detach().norm() / expected.detach().norm())


def test_logits_and_input_gradients_are_the_reference_s(pair, loaded, small_images):
    name, source = pair
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
