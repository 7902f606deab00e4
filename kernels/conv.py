"""`conv2d`: any convolution that keeps raw outputs only, and the operator behind all of this package's convolutions.

A layer here is: open the previous layer's BatchNorm and activation on the way in, convolve, leave the raw
output and its statistics. The tensor between two layers is therefore one, the raw output; the normalised and
activated one is formed in the load (or, where aten convolves, in a buffer that dies with the call) and again
in the backward pass. Eager layers keep two or three tensors for the same work.

`path` says who convolves: `aten` (cuDNN, or oneDNN on a CPU), `depthwise` or `pointwise` (this package's
kernels). All three are one operator with one definition, `conv2d_twin`.
"""

import torch
from torch import Tensor

from kernels.norm_act import norm_act_twin, norm_act_twin_backward
from kernels.prologue import (
    Prologue,
    Statistics,
    check_images,
    check_prologue,
    compute_dtype,
    per_channel,
    runs_triton,
)
from kernels.shuffle import shuffle_channels

LINES = 16
"""The depthwise kernels reach at most so many lines from a 64-bit base by 32-bit offsets: a line of W · C elements that
is longer than 2³¹ / LINES goes to the library."""


def conv2d(
    x: Tensor,
    weight: Tensor,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    *,
    prologue: Prologue | None = None,
    statistics: bool = False,
) -> Tensor | tuple[Tensor, Statistics]:
    """y = conv(act((x - center) · scale + shift), weight), keeping x and y for the backward pass and nothing between.

    x           [N, C, H, W] fp32, bf16 or fp16; made channels-last where it is not
    weight      [O, C / groups, KH, KW], any of these dtypes; used in x's
    prologue    what to do to x first; padding is zero after it
    statistics  also return the mean and M2 of y [O] over N, H', W', for the BatchNorm that follows
    returns     y [N, O, H', W'] channels-last in x's dtype, or (y, Statistics)

    Raises ValueError for shapes that do not fit. The convolution is aten's; it is not run again in the
    backward pass, only the prologue is. Twin: `conv2d_twin`.
    """
    return call(x, weight, stride, padding, dilation, groups, 1, prologue, statistics, "aten")


def call(
    x: Tensor,
    weight: Tensor,
    stride: int | tuple[int, int],
    padding: int | tuple[int, int],
    dilation: int | tuple[int, int],
    groups: int,
    shuffle: int,
    prologue: Prologue | None,
    statistics: bool,
    path: str,
) -> Tensor | tuple[Tensor, Statistics]:
    """Check what all convolutions share, and run the operator."""
    x = check_images(x)
    prologue = check_prologue(x, prologue)
    sides = [pair(value, name) for value, name in ((stride, "stride"), (padding, "padding"), (dilation, "dilation"))]
    if min(sides[0]) < 1 or min(sides[1]) < 0 or min(sides[2]) < 1:
        raise ValueError("stride and dilation must be 1 or more, padding 0 or more")
    if weight.dim() != 4 or not weight.is_floating_point():
        raise ValueError(f"weight must be [O, C / groups, KH, KW] and floating, not {list(weight.shape)}")
    if groups < 1 or x.shape[1] % groups or weight.shape[0] % groups:
        raise ValueError(f"{groups} groups do not divide {x.shape[1]} input and {weight.shape[0]} output channels")
    if weight.shape[1] * groups != x.shape[1]:
        raise ValueError(f"weight takes {weight.shape[1]} channels a group, x has {x.shape[1]} in {groups} groups")
    size = output_size(x, weight, *sides)
    if path == "depthwise" and LINES * x.shape[1] * max(x.shape[3], size[1]) >= 2**31:
        path = "aten"
    if min(size) < 1:
        raise ValueError(f"a {tuple(weight.shape[2:])} kernel does not fit {tuple(x.shape[2:])} with padding {padding}")
    y, mean, m2 = conv_op(
        x, weight, *prologue[:3], prologue.act, prologue.slope, *sides, groups, shuffle, statistics, path
    )
    return (y, Statistics(mean, m2, y.numel() // y.shape[1])) if statistics else y


def pair(value: int | tuple[int, int], name: str) -> list[int]:
    """One number for both axes, or (height, width)."""
    both = [value, value] if isinstance(value, int) else list(value)
    if len(both) != 2:
        raise ValueError(f"{name} must be one number or (height, width), not {value}")
    return both


def output_size(
    x: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int]
) -> tuple[int, int]:
    """H', W'."""
    height, width = (
        (x.shape[2 + i] + 2 * padding[i] - dilation[i] * (weight.shape[2 + i] - 1) - 1) // stride[i] + 1 for i in (0, 1)
    )
    return height, width


def conv2d_twin(
    x: Tensor,
    weight: Tensor,
    prologue: Prologue,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    shuffle: int = 1,
) -> Tensor:
    """The definition, in plain PyTorch: prologue, channel shuffle, convolution."""
    activated = shuffle_channels(norm_act_twin(x, *prologue[:3], None, prologue.act, prologue.slope, "none"), shuffle)
    return torch.nn.functional.conv2d(activated, weight.to(x.dtype), None, stride, padding, dilation, groups)


def statistics_twin(y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and M2 [C] of [N, C, H, W] in the compute dtype; zeros for an empty batch."""
    values = y.to(compute_dtype(y))
    if not y.numel():
        return values.new_zeros(y.shape[1]), values.new_zeros(y.shape[1])
    mean = values.mean((0, 2, 3))
    return mean, (values - per_channel(mean)).square_().sum((0, 2, 3))


def _activate(x, center, scale, shift, act, slope):
    """The prologue's result in x's dtype, x itself where there is none."""
    if center is None and act == "identity":
        return x
    if runs_triton(x) and x.numel():
        from kernels.device import norm_act as device

        return device.forward(x, center, scale, shift, None, act, slope, "none")
    return norm_act_twin(x, center, scale, shift, None, act, slope, "none")


def batch_statistics(y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and M2 [C], by a kernel where one runs."""
    if runs_triton(y) and y.numel():
        from kernels.device.statistics import batch_statistics

        return batch_statistics(y)
    return statistics_twin(y)


@torch.library.custom_op("hcr::conv", mutates_args=())
def conv_op(
    x: Tensor,
    weight: Tensor,
    center: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    act: str,
    slope: float,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    shuffle: int,
    statistics: bool,
    path: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Raw output, mean and M2 (empty without `statistics`) on checked arguments."""
    if path != "aten" and runs_triton(x) and x.numel():
        from kernels.device import convolution as device

        y, mean, m2 = device.forward(
            path, x, weight, center, scale, shift, act, slope, stride, padding, groups, shuffle, statistics
        )
    else:
        activated = shuffle_channels(_activate(x, center, scale, shift, act, slope), shuffle)
        y = torch.ops.aten.convolution(
            activated, weight.to(x.dtype), None, stride, padding, dilation, False, [0, 0], groups
        ).contiguous(memory_format=torch.channels_last)
        mean, m2 = batch_statistics(y) if statistics else (None, None)
    if mean is None or m2 is None:
        mean, m2 = (x.new_empty(0, dtype=compute_dtype(x)) for _ in range(2))
    return y, mean, m2


@conv_op.register_fake
def _(x, weight, center, scale, shift, act, slope, stride, padding, dilation, groups, shuffle, statistics, path):
    size = output_size(x, weight, stride, padding, dilation)
    shape = (x.shape[0], weight.shape[0], *size)
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    channels = weight.shape[0] if statistics else 0
    return (
        y,
        x.new_empty(channels, dtype=compute_dtype(x)),
        x.new_empty(channels, dtype=compute_dtype(x)),
    )


@torch.library.custom_op("hcr::conv_backward", mutates_args=())
def conv_backward_op(
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
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    shuffle: int,
    path: str,
    needs_input: bool,
    needs_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dx, dweight, Σ dz, Σ dz · (x - center), each empty where it is not needed.

    The gradient of y is dy + c1 + c2 · (y - mean): the direct part, and what comes back through y's statistics.
    """
    dy = dy.contiguous(memory_format=torch.channels_last)
    if path != "aten" and runs_triton(x) and x.numel():
        from kernels.device import convolution as device

        results = device.backward(
            path, dy, c1, c2, x, weight, y, mean, center, scale, shift, act, slope, stride, padding, groups, shuffle,
            needs_input, needs_weight,
        )  # fmt: skip
    else:
        activated = shuffle_channels(_activate(x, center, scale, shift, act, slope), shuffle)
        da, dweight, _ = torch.ops.aten.convolution_backward(
            through_statistics(dy, c1, c2, y, mean), activated, weight.to(x.dtype), None, stride, padding, dilation,
            False, [0, 0], groups, [needs_input, needs_weight, False],
        )  # fmt: skip
        del activated
        dx = sum_dz = sum_dz_x = None
        if needs_input:
            da = shuffle_channels(da, x.shape[1] // shuffle).contiguous(memory_format=torch.channels_last)
            dx, sum_dz, sum_dz_x = _through_prologue(da, x, center, scale, shift, act, slope)
        results = dx, dweight, sum_dz, sum_dz_x
    dx, dweight, sum_dz, sum_dz_x = results
    none = [x.new_empty(0, dtype=compute_dtype(x)) for _ in range(4)]
    return (
        none[0] if dx is None else dx.contiguous(memory_format=torch.channels_last),
        none[1] if dweight is None else dweight.to(weight.dtype).contiguous(),
        none[2] if sum_dz is None else sum_dz,
        none[3] if sum_dz_x is None else sum_dz_x,
    )


def through_statistics(
    dy: Tensor, c1: Tensor | None, c2: Tensor | None, y: Tensor | None, mean: Tensor | None
) -> Tensor:
    """dy + c1 + c2 · (y - mean) in y's dtype."""
    if y is None:
        return dy
    if runs_triton(y) and y.numel():
        from kernels.device import norm_act as device

        return device.batch_norm_backward(dy, y, mean, c1, c2)[0]
    centred = (y - per_channel(mean)).mul_(per_channel(c2)).add_(per_channel(c1))
    return centred.add_(dy).to(y.dtype)


def _through_prologue(da, x, center, scale, shift, act, slope):
    """dx, Σ dz, Σ dz · (x - center)."""
    if center is None and act == "identity":
        return da, None, None
    if runs_triton(x) and x.numel():
        from kernels.device.norm_act import backward
    else:
        backward = norm_act_twin_backward
    dx, _, sum_dz, sum_dz_x = backward(da, x, center, scale, shift, None, act, slope, "none")
    return dx, sum_dz, sum_dz_x


@conv_backward_op.register_fake
def _(
    dy, c1, c2, x, weight, y, mean, center, scale, shift, act, slope, stride, padding, dilation, groups, shuffle,
    path, needs_input, needs_weight,
):  # fmt: skip
    dtype = compute_dtype(x)
    channels = x.shape[1] if needs_input and center is not None else 0
    return (
        torch.empty_like(x, memory_format=torch.channels_last) if needs_input else x.new_empty(0, dtype=dtype),
        weight.new_empty(weight.shape) if needs_weight else x.new_empty(0, dtype=dtype),
        x.new_empty(channels, dtype=dtype),
        x.new_empty(channels, dtype=dtype),
    )


def _setup_context(ctx, inputs, output):
    x, weight, center, scale, shift, *ctx.settings, statistics, ctx.path = inputs
    y, mean, _ = output
    if not statistics:
        y = mean = None
    ctx.save_for_backward(x, weight, y, mean, center, scale, shift)


def _backward(ctx, dy, dmean, dm2):
    x, weight, y, mean, center, scale, shift = ctx.saved_tensors
    needs_weight = ctx.needs_input_grad[1]
    needs_input = any(ctx.needs_input_grad[i] for i in (0, 2, 3, 4))
    c1 = c2 = None
    if y is not None:
        c1, c2 = dmean / max(y.numel() // y.shape[1], 1), 2 * dm2
    dx, dweight, sum_dz, sum_dz_x = conv_backward_op(
        dy, c1, c2, x, weight, y, mean, center, scale, shift, *ctx.settings, ctx.path, needs_input, needs_weight
    )
    affine = needs_input and center is not None
    return (
        dx if needs_input else None,
        dweight if needs_weight else None,
        -scale * sum_dz if affine else None,
        sum_dz_x if affine else None,
        sum_dz if affine else None,
        *[None] * 9,
    )


conv_op.register_autograd(_backward, setup_context=_setup_context)
