"""What the operators are compared with: float64 on the same numbers, through torch's own functions."""

import os
import zlib

import pytest
import torch
import torch.nn.functional as F

import kernels
from kernels import Prologue

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

# Largest relative error (of norms). fp32 is arithmetic; 16 bits is rounding of inputs to a product, of outputs and
# of gradients, at 2^-9 (bf16) and 2^-12 (fp16) on average. Triton's interpreter truncates to bf16 instead of rounding.
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 1.4e-2 if INTERPRETED else 7e-3, torch.float16: 1e-3}
TORCH = {
    "identity": lambda z: z,
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky_relu": lambda z: F.leaky_relu(z, 0.1),
    "silu": F.silu,
    "hardswish": F.hardswish,
}


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Sums in one order, and no fight over cores with the interpreter's process."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request) -> torch.device:
    """The CPU (the twins, or the kernels under TRITON_INTERPRET=1) and, marked gpu, a GPU."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    return torch.device(request.param)


def relative_error(value, reference) -> float:
    """Norm of the difference over the norm of the reference."""
    reference = reference.double().cpu()
    return ((value.double().cpu() - reference).norm() / reference.norm().clamp_min(1e-30)).item()


@pytest.fixture
def error():
    """`relative_error`."""
    return relative_error


@pytest.fixture
def tolerance():
    """Largest relative error by dtype."""
    return TOLERANCE


@pytest.fixture
def torch_activations():
    """torch's activations by this package's names; leaky_relu with slope 0.1."""
    return TORCH


def reference_convolution(tensors, act, stride, padding, groups, shuffle):
    """Prologue, shuffle and convolution by torch; y, mean and M2."""
    x, weight, *vectors = tensors
    if vectors:
        center, scale, shift = (vector[None, :, None, None] for vector in vectors)
        x = (x - center) * scale + shift
    x = F.channel_shuffle(TORCH[act](x), shuffle) if shuffle > 1 else TORCH[act](x)
    y = F.conv2d(x, weight, None, stride, padding, 1, groups)
    mean = y.mean((0, 2, 3))
    return y, mean, ((y - mean[None, :, None, None]) ** 2).sum((0, 2, 3))


@pytest.fixture
def check_convolution(device):
    """Run one of the convolutions forward and backward and hold everything it returns to float64."""

    def check(
        shape, outputs, size, stride=1, padding=0, groups=1, act="identity", affine=True, statistics=True,
        dtype=torch.float32, shuffle=1, operation="conv2d", limit=None,
    ):  # fmt: skip
        generator = torch.Generator().manual_seed(
            zlib.crc32(repr((shape, outputs, size, stride, groups, act)).encode())
        )

        def draw(*shape):
            return torch.randn(*shape, generator=generator)

        channels = shape[1]
        tensors = [(draw(*shape) * 2 + 1).to(dtype), (draw(outputs, channels // groups, size, size)).to(dtype).float()]
        if affine:
            tensors += [draw(channels), draw(channels).abs() + 0.5, draw(channels) + 1]
        leaves = [tensor.detach().to(device).requires_grad_() for tensor in tensors]
        exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
        prologue = Prologue(*(leaves[2:] if affine else (None,) * 3), act, 0.1)
        keywords = {"prologue": prologue, "statistics": statistics}
        if operation == "depthwise_conv2d":
            result = kernels.depthwise_conv2d(leaves[0], leaves[1], stride, padding, **keywords)
        elif operation == "pointwise_conv2d":
            result = kernels.pointwise_conv2d(leaves[0], leaves[1], groups, shuffle=shuffle, **keywords)
        else:
            result = kernels.conv2d(leaves[0], leaves[1], stride, padding, 1, groups, **keywords)
        outputs_of = [result[0], result[1].mean, result[1].m2] if statistics else [result]
        references = list(reference_convolution(exact, act, stride, padding, groups, shuffle))[: len(outputs_of)]
        assert result[0].is_contiguous(memory_format=torch.channels_last) if statistics else True
        # Not centred on 0: a sum that cancels would be held to its own rounding, not to the kernel's.
        gradients = [(draw(*references[0].shape) + 1).to(dtype)] + [draw(len(r)) * 0.1 for r in references[1:]]
        found = torch.autograd.grad(outputs_of, leaves, [gradient.to(device) for gradient in gradients])
        wanted = torch.autograd.grad(references, exact, [gradient.double() for gradient in gradients])
        assert found[0].dtype == dtype and found[1].dtype == torch.float32
        names = [*["y", "mean", "M2"][: len(outputs_of)], "dx", "dweight", "dcenter", "dscale", "dshift"]
        pairs = zip(names, [*outputs_of, *found], [*references, *wanted], strict=False)
        errors = {name: relative_error(value, reference) for name, value, reference in pairs}
        too_large = {name: value for name, value in errors.items() if not value <= (limit or TOLERANCE[dtype])}
        assert not too_large, too_large

    return check
