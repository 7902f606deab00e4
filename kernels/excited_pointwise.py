"""`excited_pointwise_conv2d`: squeeze-and-excitation inside the 1 × 1 convolution behind it, as MBConv has it.

y = W · (A · gate(pool(A))) with A = act(BatchNorm(x)): neither A nor the gated A is ever in memory. One pass pools
(it needs x's finished statistics, so it cannot be the convolution's own epilogue); the gate is applied where the
product loads its operand. Backward, the product that forms dA = Wᵀ · dY emits the five sums of
`kernels.squeeze_excite` in its epilogue, and one pass over dA and x writes dx. In 16 bits the products are the
library's, and the five sums are a pass of their own (kernels.device.library_products).

Traffic, in elements, X input and Y output: forward 2X + Y where an operator each costs 4X + Y; backward 6X + 4Y,
with the pass for the weight's gradient, where they cost 8X + 4Y; and the gated A is not kept for it.
"""

import torch
from torch import Tensor

from kernels.activation import activate
from kernels.conv import batch_statistics, through_statistics
from kernels.norm_act import before_activation
from kernels.prologue import (
    Prologue,
    Statistics,
    check_images,
    check_prologue,
    compute_dtype,
    prologue_gradients,
    runs_triton,
)
from kernels.squeeze_excite import check_layers, excite, five_sums, input_gradient, open_gate, through_gate


def excited_pointwise_conv2d(
    x: Tensor,
    weight: Tensor,
    reduce_weight: Tensor,
    reduce_bias: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor,
    *,
    prologue: Prologue | None = None,
    act: str = "silu",
    gate: str = "sigmoid",
    statistics: bool = False,
) -> Tensor | tuple[Tensor, Statistics]:
    """y[n,o,h,w] = Σ_c weight[o,c] · A[n,c,h,w] · gate(W₂ act(W₁ m[n] + b₁) + b₂)[c], m[n,c] = mean over H, W of A.

    x              [N, C, H, W] fp32, bf16 or fp16 (fp64 runs the twin); made channels-last where it is not
    weight         [O, C, 1, 1]; used in x's dtype, as is the gated A
    reduce_weight  [R, C] or [R, C, 1, 1], reduce_bias [R]; expand_weight [C, R] or [C, R, 1, 1], expand_bias [C]
    prologue       A = act((x - center) · scale + shift); none is A = x
    act, gate      between the two layers, and after them: sigmoid or hardsigmoid
    statistics     also return the mean and M2 of y [O]
    returns        y [N, O, H, W] channels-last in x's dtype, accumulated in fp32; or (y, Statistics)

    Raises ValueError for shapes, activations or gates that do not fit. Twin: `squeeze_excite`'s, then conv2d.
    """
    x = check_images(x)
    prologue = check_prologue(x, prologue)
    if weight.dim() != 4 or weight.shape[1:] != (x.shape[1], 1, 1):
        raise ValueError(f"weight must be [O, {x.shape[1]}, 1, 1], not {list(weight.shape)}")
    layers = check_layers(x, reduce_weight, reduce_bias, expand_weight, expand_bias, act, gate)
    y, mean, m2, *_ = excited_pointwise_op(
        x, weight, *prologue[:3], prologue.act, prologue.slope, *layers, act, gate, statistics
    )
    return (y, Statistics(mean, m2, y.numel() // y.shape[1])) if statistics else y


def _gated(x, center, scale, shift, act, slope, opened):
    """A · gate in x's dtype."""
    values = activate(before_activation(x, center, scale, shift), act, slope) * opened[:, :, None, None]
    return values.to(x.dtype)


@torch.library.custom_op("hcr::excited_pointwise", mutates_args=())
def excited_pointwise_op(
    x: Tensor,
    weight: Tensor,
    center: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    act: str,
    slope: float,
    first: Tensor,
    first_bias: Tensor,
    second: Tensor,
    second_bias: Tensor,
    inner: str,
    gate: str,
    statistics: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Raw output, mean and M2 (empty without `statistics`), and what backward keeps: pooled, inner layer, logits."""
    prologue = (center, scale, shift, act, slope)
    *kept, opened = excite(x, *prologue, first, first_bias, second, second_bias, inner, gate)
    if runs_triton(x) and x.numel():
        from kernels.device import pointwise as device

        y, mean, m2 = device.forward(x, weight, *prologue, 1, 1, statistics, opened)
    else:
        y = torch.nn.functional.conv2d(_gated(x, *prologue, opened), weight.to(x.dtype))
        y = y.contiguous(memory_format=torch.channels_last)
        mean, m2 = batch_statistics(y) if statistics else (None, None)
    if mean is None or m2 is None:
        mean, m2 = (x.new_empty(0, dtype=compute_dtype(x)) for _ in range(2))
    return y, mean, m2, *kept


@excited_pointwise_op.register_fake
def _(x, weight, center, scale, shift, act, slope, first, first_bias, second, second_bias, inner, gate, statistics):
    batch, channels, height, width = x.shape
    dtype, outputs = compute_dtype(x), weight.shape[0]
    y = x.new_empty((batch, outputs, height, width)).contiguous(memory_format=torch.channels_last)
    mean, m2 = (x.new_empty(outputs if statistics else 0, dtype=dtype) for _ in range(2))
    pooled, logits = (x.new_empty((batch, channels), dtype=dtype) for _ in range(2))
    return y, mean, m2, pooled, x.new_empty((batch, first.shape[0]), dtype=dtype), logits


@torch.library.custom_op("hcr::excited_pointwise_backward", mutates_args=())
def excited_pointwise_backward_op(
    dy: Tensor,
    c1: Tensor | None,
    c2: Tensor | None,
    x: Tensor,
    weight: Tensor,
    y: Tensor | None,
    mean: Tensor | None,
    center: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    act: str,
    slope: float,
    first: Tensor,
    second: Tensor,
    inner: str,
    gate: str,
    pooled: Tensor,
    hidden: Tensor,
    logits: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dx, dweight, Σ dz, Σ dz · (x - center), and the gradients of both layers' weights and biases."""
    dy = dy.contiguous(memory_format=torch.channels_last)
    prologue = (center, scale, shift, act, slope)
    opened = open_gate(logits, gate)
    if runs_triton(x) and x.numel():
        from kernels.device import library_products, pointwise_backward
        from kernels.device.pointwise_tiles import multiplied_by_library

        tensors = (dy, c1, c2, x, weight, y, mean, *prologue)
        if multiplied_by_library(x):
            da, dweight, sums = library_products.gated_backward(*tensors, opened)
        else:
            da, dweight, sums, _ = pointwise_backward.backward(*tensors, 1, 1, True, True, opened)
    else:
        da, dweight, _ = torch.ops.aten.convolution_backward(
            through_statistics(dy, c1, c2, y, mean), _gated(x, *prologue, opened), weight.to(x.dtype), None,
            [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [True, True, False],
        )  # fmt: skip
        da = da.contiguous(memory_format=torch.channels_last)
        sums = five_sums(da, x, *prologue)
    opened, constant, *vectors = through_gate(
        sums, first, second, inner, gate, pooled, hidden, logits, x.shape[2] * x.shape[3]
    )
    dx = input_gradient(da, x, *prologue, opened, constant)
    return dx, dweight.to(weight.dtype).contiguous(), *vectors


@excited_pointwise_backward_op.register_fake
def _(
    dy, c1, c2, x, weight, y, mean, center, scale, shift, act, slope, first, second, inner, gate, pooled, hidden, logits
):  # fmt: skip
    sums = [pooled.new_empty(x.shape[1]) for _ in range(2)]
    layers = [pooled.new_empty(shape) for shape in (first.shape, first.shape[:1], second.shape, second.shape[:1])]
    return torch.empty_like(x, memory_format=torch.channels_last), weight.new_empty(weight.shape), *sums, *layers


def _setup_context(ctx, inputs, output):
    x, weight, center, scale, shift, act, slope, first, _, second, _, inner, gate, statistics = inputs
    y, mean, _, *kept = output
    ctx.settings = act, slope, inner, gate
    y, mean = (y, mean) if statistics else (None, None)
    ctx.save_for_backward(x, weight, y, mean, center, scale, shift, first, second, *kept)


def _backward(ctx, dy, dmean, dm2, *_):
    x, weight, y, mean, center, scale, shift, first, second, *kept = ctx.saved_tensors
    act, slope, inner, gate = ctx.settings
    c1 = c2 = None
    if y is not None:
        c1, c2 = dmean / max(y.numel() // y.shape[1], 1), 2 * dm2
    dx, dweight, sum_dz, sum_dz_x, *layers = excited_pointwise_backward_op(
        dy, c1, c2, x, weight, y, mean, center, scale, shift, act, slope, first, second, inner, gate, *kept
    )
    vectors = prologue_gradients(scale, sum_dz, sum_dz_x)
    return dx, dweight, *vectors, None, None, *layers, None, None, None


excited_pointwise_op.register_autograd(_backward, setup_context=_setup_context)
