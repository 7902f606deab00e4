"""norm_act, channel_shuffle, squeeze_excite, the raw-output convolution and batch statistics against float64."""

import pytest
import torch
import torch.nn.functional as F

from kernels import Prologue, channel_shuffle, conv2d, excited_pointwise_conv2d, norm_act, squeeze_excite
from kernels.activation import ACTIVATIONS


def leaves(generator, *shapes):
    return [torch.randn(*shape, generator=generator) for shape in shapes]


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("place", ["none", "before", "after"])
def test_norm_act(device, error, torch_activations, act, place):
    x, center, scale, shift, residual = leaves(
        torch.Generator().manual_seed(0), (3, 20, 5, 7), (20,), (20,), (20,), (3, 20, 5, 7)
    )
    tensors = [x * 3 + 1, center, scale, shift] + ([residual] if place != "none" else [])
    found = [tensor.detach().to(device).requires_grad_() for tensor in tensors]
    exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    y = norm_act(found[0], Prologue(*found[1:4], act, 0.1), *found[4:], residual_after_activation=place == "after")
    z = (exact[0] - exact[1][:, None, None]) * exact[2][:, None, None] + exact[3][:, None, None]
    reference = torch_activations[act](z + exact[4] if place == "before" else z)
    reference = reference + exact[4] if place == "after" else reference
    gradient = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    assert error(y, reference) < 1e-6
    pairs = zip(
        torch.autograd.grad(y, found, gradient.to(device)),
        torch.autograd.grad(reference, exact, gradient.double()),
        strict=True,
    )
    assert max(error(value, wanted) for value, wanted in pairs) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_norm_act_in_half_precision(device, error, dtype):
    x, residual = (t.to(dtype) for t in leaves(torch.Generator().manual_seed(0), (2, 24, 5, 7), (2, 24, 5, 7)))
    found, exact = x.detach().to(device).requires_grad_(), x.detach().double().requires_grad_()
    y = norm_act(found, Prologue(act="silu"), residual.to(device), residual_after_activation=True)
    reference = F.silu(exact) + residual.double()
    y.sum().backward()
    reference.sum().backward()
    assert y.dtype == dtype
    assert error(y, reference, dtype) < 1e-6 and error(found.grad, exact.grad, dtype) < 1e-6


@pytest.mark.parametrize("groups", [2, 3, 4, 6, 12])
def test_channel_shuffle_and_back(device, groups):
    x = torch.randn(2, 24, 3, 5, generator=torch.Generator().manual_seed(0))
    found = x.detach().to(device).requires_grad_()
    y = channel_shuffle(found, groups)
    assert torch.equal(y.cpu(), F.channel_shuffle(x, groups))
    (gradient,) = torch.autograd.grad(y, found, y.detach())
    assert torch.equal(gradient.cpu(), x)


@pytest.mark.parametrize(("act", "gate"), [("silu", "sigmoid"), ("relu", "hardsigmoid")])
@pytest.mark.parametrize("affine", [True, False])
def test_squeeze_excite(device, error, torch_activations, act, gate, affine):
    tensors = leaves(torch.Generator().manual_seed(0), (3, 20, 5, 7), (6, 20), (6,), (20, 6), (20,))
    tensors += leaves(torch.Generator().manual_seed(1), (20,), (20,), (20,)) if affine else []
    found = [tensor.detach().to(device).requires_grad_() for tensor in tensors]
    exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    y = squeeze_excite(
        *found[:5], prologue=Prologue(*found[5:], act=act) if affine else Prologue(act=act), act=act, gate=gate
    )
    z = exact[0]
    if affine:
        z = (z - exact[5][:, None, None]) * exact[6][:, None, None] + exact[7][:, None, None]
    activated = torch_activations[act](z)
    hidden = torch_activations[act](F.linear(activated.mean((2, 3)), exact[1], exact[2]))
    logits = F.linear(hidden, exact[3], exact[4])
    opened = torch.sigmoid(logits) if gate == "sigmoid" else F.hardsigmoid(logits)
    reference = activated * opened[:, :, None, None]
    gradient = torch.randn(y.shape, generator=torch.Generator().manual_seed(2))
    assert error(y, reference) < 1e-6
    pairs = zip(
        torch.autograd.grad(y, found, gradient.to(device)),
        torch.autograd.grad(reference, exact, gradient.double()),
        strict=True,
    )
    assert max(error(value, wanted) for value, wanted in pairs) < 1e-6


def test_an_excitation_of_many_channels_images_and_tiles(device, error):
    """More channels than a block, more images than are summed at once, several parts an image, an odd inner width."""
    draw = torch.Generator().manual_seed(0)
    for shape, inner in (((2, 300, 3, 3), 17), ((33, 20, 1, 2), 5), ((1, 1, 12, 23), 1)):
        tensors = list(leaves(draw, shape, (inner, shape[1]), (inner,), (shape[1], inner), (shape[1],)))
        tensors[1], tensors[3] = tensors[1] / shape[1] ** 0.5, tensors[3] / inner**0.5  # as layers begin
        found = [tensor.detach().to(device).requires_grad_() for tensor in tensors]
        exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
        y = squeeze_excite(*found)
        hidden = F.silu(F.linear(exact[0].mean((2, 3)), exact[1], exact[2]))
        reference = exact[0] * torch.sigmoid(F.linear(hidden, exact[3], exact[4]))[:, :, None, None]
        gradient = torch.randn(y.shape, generator=draw)
        pairs = zip(
            (y, *torch.autograd.grad(y, found, gradient.to(device))),
            (reference, *torch.autograd.grad(reference, exact, gradient.double())),
            strict=True,
        )
        assert max(error(value, wanted) for value, wanted in pairs) < 1e-6


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_number_stays_in_its_image(device, bad):
    x, *layers = (
        t.to(device) for t in leaves(torch.Generator().manual_seed(0), (2, 20, 3, 3), (6, 20), (6,), (20, 6), (20,))
    )
    x[0, 3, 1, 1] = bad
    y = squeeze_excite(x, *layers)
    assert y[0].isnan().any() and y[1].isfinite().all()


def excited_by_torch(tensors, act, gate, torch_activations, rounded=lambda values: values):
    """squeeze_excite and a 1 x 1 convolution by torch's own functions: y."""
    x, weight, first, first_bias, second, second_bias, center, scale, shift = tensors
    z = (x - center[:, None, None]) * scale[:, None, None] + shift[:, None, None]
    activated = torch_activations[act](z)
    hidden = torch_activations[act](F.linear(activated.mean((2, 3)), first, first_bias))
    logits = F.linear(hidden, second, second_bias)
    opened = torch.sigmoid(logits) if gate == "sigmoid" else F.hardsigmoid(logits)
    return F.conv2d(rounded(activated * opened[:, :, None, None]), weight)


def excited_tensors(channels, outputs, side, dtype=torch.float32):
    draw = torch.Generator().manual_seed(channels)
    shapes = [(3, channels, side, side + 1), (outputs, channels, 1, 1), (6, channels), (6,), (channels, 6)]
    tensors = leaves(draw, *shapes, *[(channels,)] * 4)
    # A pooled sum of many random terms cancels; 1 / C keeps the gate's own rounding from being all of its gradient.
    tensors[2] = tensors[2] / channels
    return [
        (tensors[0] * 2 + 1).to(dtype),
        tensors[1].to(dtype).float(),
        *tensors[2:7],
        tensors[7].abs() + 0.5,
        tensors[8],
    ]


@pytest.mark.parametrize(
    ("channels", "outputs", "side", "act", "gate"),
    [(20, 12, 6, "silu", "sigmoid"), (20, 12, 6, "relu", "hardsigmoid"), (70, 130, 8, "silu", "sigmoid")],
)
def test_excitation_inside_a_pointwise_convolution(
    device, error, torch_activations, act, gate, channels, outputs, side
):
    """Three images, so that tiles must stop at each one's end; 8 x 9 pixels are more than a tile."""
    tensors = excited_tensors(channels, outputs, side)
    found = [tensor.detach().to(device).requires_grad_() for tensor in tensors]
    exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    y, statistics = excited_pointwise_conv2d(
        *[found[i] for i in range(6)], prologue=Prologue(*found[6:], act), act=act, gate=gate, statistics=True
    )
    reference = excited_by_torch(exact, act, gate, torch_activations)
    mean = reference.mean((0, 2, 3))
    m2 = ((reference - mean[:, None, None]) ** 2).sum((0, 2, 3))
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert max(error(*pair) for pair in ((y, reference), (statistics.mean, mean), (statistics.m2, m2))) < 1e-6
    generator = torch.Generator().manual_seed(1)
    gradients = [torch.randn(shape, generator=generator) + 1 for shape in (y.shape, mean.shape, m2.shape)]
    pairs = zip(
        torch.autograd.grad([y, statistics.mean, statistics.m2], found, [g.to(device) for g in gradients]),
        torch.autograd.grad([reference, mean, m2], exact, [g.double() for g in gradients]),
        strict=True,
    )
    assert max(error(value, wanted) for value, wanted in pairs) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_excitation_inside_a_pointwise_convolution_in_half_precision(device, error, torch_activations, dtype):
    """The gated operand is rounded, as any operand of the product; one flip of a tie is 2^-9 of one element."""
    tensors = excited_tensors(20, 12, 6, dtype)
    found = [tensor.detach().to(device).requires_grad_() for tensor in tensors]
    exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    y = excited_pointwise_conv2d(*found[:6], prologue=Prologue(*found[6:], "silu"))
    reference = excited_by_torch(
        exact, "silu", "sigmoid", torch_activations, lambda v: v + (v.to(dtype).double() - v).detach()
    )
    assert y.dtype == dtype and error(y, reference, dtype) < 4e-5
    gradient = torch.ones_like(y)
    wanted = torch.autograd.grad(reference, exact, gradient.double().cpu())
    results = torch.autograd.grad(y, found, gradient)
    # dA is stored between the product and dx: two roundings on dx, one on what is summed from it.
    half = 2.0 ** -(8 if dtype == torch.bfloat16 else 11)
    assert max(error(value, exact_one) for value, exact_one in zip(results, wanted, strict=True)) < 2 * half


@pytest.mark.parametrize("act", ["relu", "silu"])
def test_raw_output_convolution(check_convolution, act):
    check_convolution((2, 16, 6, 7), 24, 3, 2, 1, 4, act)


def test_raw_output_convolution_in_half_precision(check_convolution):
    check_convolution((2, 16, 6, 7), 24, 3, 1, 1, 1, "relu", dtype=torch.bfloat16)


def test_statistics_of_many_tiles_with_a_large_mean(device):
    """The stand-alone statistics, over more rows than one merge takes."""
    x = 1e4 + torch.randn(5, 16, 83, 81, generator=torch.Generator().manual_seed(0))
    y, statistics = conv2d(x.to(device), torch.eye(16, device=device)[:, :, None, None], statistics=True)
    exact = y.double().cpu().var((0, 2, 3), correction=0)
    assert (((statistics.m2.cpu() / statistics.count) - exact).abs() / exact).max() < 1e-3
    assert ((statistics.mean.cpu() - y.double().cpu().mean((0, 2, 3))).abs()).max() < 1e-2
