"""What the operators are compared with: float64 on the same numbers, through torch's own functions.

The measure. fp32 results are held to a relative error of norms of 1e-6. A 16-bit result is first allowed half an ulp
of each element, the rounding of a result that is exact before it is stored (2^-8 of the element at most in bf16, 2^-11
in fp16); what is left over is the arithmetic's error and is held to the same 1e-6, since sums are in fp32 whatever
the images are. So the reference starts from the same 16-bit inputs and rounds where the operators round by design, and
nowhere else: a stored tensor, and an operand of a matrix product (see `Rounding`).

A sum over pixels of terms of both signs has the rounding of its terms, however small it is itself (Higham, 2002,
Accuracy and Stability of Numerical Algorithms, 4.2). Random shapes may have one channel of a few pixels, whose sum may
be near 0: there `cancels` compares with the norm of the sums of absolute terms. All else is compared with the result.

Two results are held to less. Behind a rounded operand: fp32 and float64 differ by a few 2^-24 before the rounding, so
that among N operands about N · 2^-24 / ulp fall on the other side of a tie and are an ulp off, which in norm is
√(2^-24 · ulp), 5e-6 (fp16) to 2e-5 (bf16) for each 2^-24 (`FLIPPED`). And behind a library's own 16-bit
convolution, which on a CPU sums in fp16 (`LIBRARY`): its arithmetic is not this package's. Without AVX-512 it sums in
shorter steps: up to 3.9e-3 was seen on such a machine.
"""

import os
import zlib
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F

import kernels
from kernels import Prologue

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
LIMIT, FLIPPED = 1e-6, 4e-5
LIBRARY = 1e-3 if torch.backends.cpu.get_cpu_capability().startswith("AVX512") else 5e-3
DIGITS = {torch.bfloat16: 8, torch.float16: 11}
TORCH = {
    "identity": lambda z: z,
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky_relu": lambda z: F.leaky_relu(z, 0.1),
    "silu": F.silu,
    "hardswish": F.hardswish,
}


def interpret_bf16_as_hardware_does() -> None:
    """Make Triton's interpreter round fp32 to bf16 to the nearest, ties to even, as a GPU's cvt.rn does.

    Triton 3.9 cuts the low bits off instead (`_convert_float` in triton/runtime/interpreter.py, without a rounding
    mode), an error of up to a whole ulp that no kernel makes on a GPU.
    """
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    plain = interpreter._convert_float

    def convert(values, given, wanted, mode):
        if (given, wanted) != (tl.float32, tl.bfloat16):
            return plain(values, given, wanted, mode)
        rounded = torch.from_numpy(np.array(values, dtype=np.float32)).to(torch.bfloat16)
        return rounded.view(torch.int16).numpy().view(np.uint16)

    interpreter._convert_float = convert


if INTERPRETED:
    interpret_bf16_as_hardware_does()


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Sums in one order, and no fight over cores with the interpreter's process; on a GPU fp32 that is no TF32."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    if torch.cuda.is_available():
        torch.backends.cudnn.allow_tf32 = False
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.real_gpu])])
def device(request) -> torch.device:
    """The CPU (the twins, or the kernels under TRITON_INTERPRET=1) and, marked gpu, a GPU."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    return torch.device(request.param)


def half_ulp(reference, dtype):
    """The largest error of rounding each element of `reference` to a 16-bit `dtype`."""
    lowest = torch.tensor(torch.finfo(dtype).smallest_normal).double().frexp().exponent
    return torch.ldexp(torch.ones_like(reference), reference.frexp().exponent.clamp_min(lowest) - DIGITS[dtype] - 1)


def relative_error(value, reference, stored=torch.float32, scale=None) -> float:
    """Norm of the difference over the norm of the reference, or of `scale`; see the module's head.

    stored  dtype that the result was rounded to on its way: half an ulp of a 16-bit one is allowed
    """
    value, reference = value.detach().double().cpu(), reference.detach().double().cpu()
    difference = (value - reference).abs()
    if stored in DIGITS:
        difference = (difference - half_ulp(reference, stored)).clamp_min(0)
    return (difference.norm() / (reference if scale is None else scale).norm().clamp_min(1e-30)).item()


@pytest.fixture
def error():
    """`relative_error`."""
    return relative_error


@pytest.fixture
def torch_activations():
    """torch's activations by this package's names; leaky_relu with slope 0.1."""
    return TORCH


class Rounding(NamedTuple):
    """Where a path rounds to the images' dtype by design, y and dx aside, which every path stores."""

    activated: bool
    """x' on its way into the product: matrix units multiply 16-bit operands, and a library reads it from memory."""
    through: bool
    """dY, the gradient with BatchNorm's part, on its way into the backward products."""
    back: bool
    """The gradient of x', which a library stores."""
    weight: bool
    """The gradient of the weight, which a library returns in the images' dtype."""


NOWHERE = Rounding(False, False, False, False)
PATHS = {
    "depthwise_conv2d": NOWHERE,
    "pointwise_conv2d": Rounding(True, True, False, False),
    "products": Rounding(True, True, True, False),
    "conv2d": Rounding(True, True, True, True),
}
"""Products: a pointwise layer whose products are the library's and leave fp32 for the weight."""


class _Round(torch.autograd.Function):
    """Round values to `forward_to` and gradients to `backward_to`; None leaves them."""

    @staticmethod
    def forward(ctx, values, forward_to, backward_to):
        ctx.backward_to = backward_to
        return values.clone() if forward_to is None else values.to(forward_to).to(values.dtype)

    @staticmethod
    def backward(ctx, gradient):
        return gradient if ctx.backward_to is None else gradient.to(ctx.backward_to).to(gradient.dtype), None, None


def reference_convolution(tensors, act, stride, padding, groups, shuffle, dtype, rounding, stored):
    """Prologue, shuffle and convolution in float64: y, mean and M2 of `stored` (the y that was found); z and x'."""
    x, weight, *vectors = tensors
    if vectors:
        center, scale, shift = (vector[None, :, None, None] for vector in vectors)
        x = (x - center) * scale + shift
    z = x
    x = TORCH[act](x)
    x = _Round.apply(x, dtype if rounding.activated else None, dtype if rounding.back else None)
    x = F.channel_shuffle(x, shuffle) if shuffle > 1 else x
    y = F.conv2d(x, weight, None, stride, padding, 1, groups)
    y = _Round.apply(y, None, dtype if rounding.through else None)
    kept = y + (stored.double() - y).detach()
    mean = kept.mean((0, 2, 3))
    return y, mean, ((kept - mean[None, :, None, None]) ** 2).sum((0, 2, 3)), z, x


@pytest.fixture
def check_convolution(device):
    """Run one of the convolutions forward and backward and hold everything it returns to float64.

    rounds  the one of PATHS that says where, if not the operation's
    """

    def check(
        shape, outputs, size, stride=1, padding=0, groups=1, act="identity", affine=True, statistics=True,
        dtype=torch.float32, shuffle=1, operation="conv2d", cancels=False, rounds=None,
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
        assert outputs_of[0].is_contiguous(memory_format=torch.channels_last)
        by_library = device.type == "cpu" and not INTERPRETED
        rounding = PATHS["conv2d" if by_library else rounds or operation]
        if dtype == torch.float32:
            rounding = NOWHERE
        *references, z, operand = list(
            reference_convolution(
                exact, act, stride, padding, groups, shuffle, dtype, rounding, outputs_of[0].detach().cpu()
            )
        )
        references = references[: len(outputs_of)]
        # Not centred on 0: a sum that cancels would be held to its own rounding, not to the kernel's.
        gradients = [(draw(*references[0].shape) + 1).to(dtype)] + [draw(len(r)) * 0.1 for r in references[1:]]
        found = torch.autograd.grad(outputs_of, leaves, [gradient.to(device) for gradient in gradients])
        *wanted, dz, dy = torch.autograd.grad(
            references, [*exact, z, references[0]], [gradient.double() for gradient in gradients]
        )
        assert found[0].dtype == dtype and found[1].dtype == torch.float32
        names = [
            *["y", "mean", "M2"][: len(outputs_of)],
            *["dx", "dweight", "dcenter", "dscale", "dshift"][: len(leaves)],
        ]
        stored = {"y": dtype, "dx": dtype, "dweight": dtype if rounding.weight else torch.float32}
        pairs = zip(names, [*outputs_of, *found], [*references, *wanted], strict=True)
        terms = {}
        if cancels and affine:
            center, scale = (vector.detach()[None, :, None, None] for vector in exact[2:4])
            terms = {"dcenter": dz * scale, "dscale": dz * (exact[0].detach() - center), "dshift": dz}
            terms = {name: term.abs().sum((0, 2, 3)) for name, term in terms.items()}
            terms["dweight"] = torch.nn.grad.conv2d_weight(
                operand.detach().abs(), exact[1].shape, dy.abs(), stride, padding, 1, groups
            )
        errors = {
            name: relative_error(value, reference, stored.get(name, torch.float32), terms.get(name))
            for name, value, reference in pairs
        }
        limits = dict.fromkeys(names, LIMIT)
        if dtype in DIGITS and (by_library or operation == "conv2d"):
            limits = dict.fromkeys(names, LIBRARY)
        elif rounding != NOWHERE:
            limits |= dict.fromkeys(names[len(outputs_of) :], FLIPPED) | {"y": FLIPPED}
        too_large = {name: value for name, value in errors.items() if not value <= limits[name]}
        assert not too_large, too_large

    return check
