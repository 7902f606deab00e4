"""`norm_act`: normalise, add a residual, activate, in one pass: the last epilogue of a block.

It saves its input alone. The value before the activation is formed again in the backward pass, which also
emits the two sums that BatchNorm's backward needs.
"""

import torch
from torch import Tensor

from kernels.activation import activate, derivative
from kernels.prologue import Prologue, check_images, check_prologue, compute_dtype, per_channel, runs_triton


def norm_act(
    x: Tensor, prologue: Prologue, residual: Tensor | None = None, residual_after_activation: bool = False
) -> Tensor:
    """y = act(z + residual), or act(z) + residual, with z[n,c,h,w] = (x[n,c,h,w] - center[c]) · scale[c] + shift[c].

    x          [N, C, H, W] fp32, bf16 or fp16; made channels-last where it is not
    prologue   center, scale, shift (or none of them) and the activation
    residual   as x, same shape and dtype; added before the activation (ResNet) or after it (Darknet)
    returns    [N, C, H, W] channels-last in x's dtype; computed in fp32, rounded once

    Raises ValueError for vectors that do not fit x, an unknown activation, a residual of another shape or dtype.
    Saves x (and the residual where it goes before an activation), not the output. Twin: `norm_act_twin`.
    """
    x = check_images(x)
    prologue = check_prologue(x, prologue)
    place = "none"
    if residual is not None:
        if residual.shape != x.shape or residual.dtype != x.dtype:
            raise ValueError(
                f"residual must be {list(x.shape)} {x.dtype} as x, not {list(residual.shape)} {residual.dtype}"
            )
        residual = check_images(residual, "residual")
        place = "after" if residual_after_activation else "before"
    elif prologue.is_identity():
        return x
    return norm_act_op(x, *prologue[:3], residual, prologue.act, prologue.slope, place)


def norm_act_twin(
    x: Tensor,
    center: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    act: str,
    slope: float,
    place: str,
) -> Tensor:
    """The definition, in plain PyTorch."""
    z = before_activation(x, center, scale, shift)
    if place == "before":
        z = z + residual
    z = activate(z, act, slope)
    if place == "after":
        z = z + residual
    return z.to(x.dtype)


def before_activation(x: Tensor, center: Tensor | None, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    """z in the compute dtype."""
    z = x.to(compute_dtype(x))
    if center is None or scale is None or shift is None:
        return z
    return (z - per_channel(center)) * per_channel(scale) + per_channel(shift)


def norm_act_twin_backward(
    grad: Tensor,
    x: Tensor,
    center: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    act: str,
    slope: float,
    place: str,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """dx, the residual's gradient where it is not `grad` itself, Σ dz [C], Σ dz · (x - center) [C]."""
    dz = grad.to(compute_dtype(x))
    if act != "identity":
        z = before_activation(x, center, scale, shift)
        if place == "before":
            z = z + residual
        dz = dz * derivative(z, act, slope)
    dresidual = dz.to(x.dtype) if place == "before" and act != "identity" else None
    if center is None or scale is None:
        return torch.empty_like(x).copy_(dz), dresidual, None, None  # two results may not share memory
    sum_dz = dz.sum((0, 2, 3))
    sum_dz_x = (dz * (x - per_channel(center))).sum((0, 2, 3))
    return (dz * per_channel(scale)).to(x.dtype), dresidual, sum_dz, sum_dz_x


@torch.library.custom_op("hcr::norm_act", mutates_args=())
def norm_act_op(
    x: Tensor,
    center: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    act: str,
    slope: float,
    place: str,
) -> Tensor:
    """`norm_act` on checked arguments; `place` of the residual is none, before or after."""
    if runs_triton(x) and x.numel():
        from kernels.device import norm_act as device

        return device.forward(x, center, scale, shift, residual, act, slope, place)
    out = torch.empty_like(x, memory_format=torch.channels_last)
    return out.copy_(norm_act_twin(x, center, scale, shift, residual, act, slope, place))


@norm_act_op.register_fake
def _(x, center, scale, shift, residual, act, slope, place):
    return torch.empty_like(x, memory_format=torch.channels_last)


@torch.library.custom_op("hcr::norm_act_backward", mutates_args=())
def norm_act_backward_op(
    grad: Tensor,
    x: Tensor,
    center: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    act: str,
    slope: float,
    place: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x and of the residual, Σ dz, Σ dz · (x - center); empty where there is none."""
    grad = grad.contiguous(memory_format=torch.channels_last)
    arguments = (grad, x, center, scale, shift, residual, act, slope, place)
    if runs_triton(x) and x.numel():
        from kernels.device import norm_act as device

        results = device.backward(*arguments)
    else:
        results = norm_act_twin_backward(*arguments)
    dx, dresidual, sum_dz, sum_dz_x = results
    dx = dx.contiguous(memory_format=torch.channels_last)
    none = [x.new_empty(0, dtype=compute_dtype(x)) for _ in range(3)]
    return (
        dx,
        none[0] if dresidual is None else dresidual.contiguous(memory_format=torch.channels_last),
        none[1] if sum_dz is None else sum_dz,
        none[2] if sum_dz_x is None else sum_dz_x,
    )


@norm_act_backward_op.register_fake
def _(grad, x, center, scale, shift, residual, act, slope, place):
    dtype = compute_dtype(x)
    channels = 0 if center is None else x.shape[1]
    images = torch.empty_like(x, memory_format=torch.channels_last)
    with_residual = place == "before" and act != "identity"
    return (
        images,
        torch.empty_like(images) if with_residual else x.new_empty(0, dtype=dtype),
        x.new_empty(channels, dtype=dtype),
        x.new_empty(channels, dtype=dtype),
    )


def _setup_context(ctx, inputs, output):
    x, center, scale, shift, residual, ctx.act, ctx.slope, ctx.place = inputs
    kept = residual if ctx.place == "before" and ctx.act != "identity" else None
    ctx.save_for_backward(x, center, scale, shift, kept)


def _backward(ctx, grad):
    x, center, scale, shift, residual = ctx.saved_tensors
    if center is None and ctx.act == "identity":
        return grad, None, None, None, grad, None, None, None
    place = ctx.place if residual is not None else "none"
    dx, dresidual, sum_dz, sum_dz_x = norm_act_backward_op(
        grad, x, center, scale, shift, residual, ctx.act, ctx.slope, place
    )
    if ctx.place == "none":
        dresidual = None
    elif residual is None:
        dresidual = grad
    if center is None:
        return dx, None, None, None, dresidual, None, None, None
    return dx, -scale * sum_dz, sum_dz_x, sum_dz, dresidual, None, None, None


norm_act_op.register_autograd(_backward, setup_context=_setup_context)
