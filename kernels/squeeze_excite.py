"""`squeeze_excite`: out = A · gate(pool(A)) with A = act(BatchNorm(x)), without A in memory.

Forward: one pass that pools, one that gates. Backward: one reduction that reads the gradient and x once and
emits five sums a (n, c); the gate's gradient and both sums of BatchNorm's backward follow from them on [N, C]
vectors, so there is no second reduction. Then one pass writes dx.

    dA' = gate · dA + dm / HW, dz = act'(z) · dA'          dm: the gradient of the pooled mean
    S1 = Σ dA·A   S2 = Σ dA·act'   S3 = Σ dA·act'·(x - μ)   S4 = Σ act'   S5 = Σ act'·(x - μ)     over H, W
    dgate = S1,  Σ dz = Σ_n gate·S2 + dm/HW·S4,  Σ dz·(x - μ) = Σ_n gate·S3 + dm/HW·S5

Source: Hu et al., 2017, arXiv:1709.01507; the five sums are this project's.
"""

import torch
from torch import Tensor

from kernels.activation import activate, check_activation, derivative
from kernels.norm_act import before_activation
from kernels.prologue import (
    Prologue,
    check_images,
    check_prologue,
    compute_dtype,
    outside_autocast,
    prologue_gradients,
    runs_triton,
)

GATES = ("sigmoid", "hardsigmoid")


def squeeze_excite(
    x: Tensor,
    reduce_weight: Tensor,
    reduce_bias: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor,
    *,
    prologue: Prologue | None = None,
    act: str = "silu",
    gate: str = "sigmoid",
) -> Tensor:
    """out[n,c,h,w] = A[n,c,h,w] · gate(W₂ act(W₁ m[n] + b₁) + b₂)[c], m[n,c] = mean over H, W of A.

    x              [N, C, H, W] fp32, bf16 or fp16; made channels-last where it is not
    reduce_weight  [R, C] or [R, C, 1, 1], reduce_bias [R]; expand_weight [C, R] or [C, R, 1, 1], expand_bias [C]
    prologue       A = act((x - center) · scale + shift); none is A = x
    act, gate      between the two layers, and after them: sigmoid or hardsigmoid
    returns        [N, C, H, W] channels-last in x's dtype; pooled, gated and summed in fp32

    Raises ValueError for shapes, activations or gates that do not fit. Twin: `squeeze_excite_twin`.
    """
    x = check_images(x)
    prologue = check_prologue(x, prologue)
    layers = check_layers(x, reduce_weight, reduce_bias, expand_weight, expand_bias, act, gate)
    out, *_ = squeeze_excite_op(x, *prologue[:3], prologue.act, prologue.slope, *layers, act, gate)
    return out


def check_layers(
    x: Tensor,
    reduce_weight: Tensor,
    reduce_bias: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor,
    act: str,
    gate: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Matrices and biases in x's compute dtype; raise ValueError for shapes, activations or gates that do not fit."""
    check_activation(act)
    if gate not in GATES:
        raise ValueError(f"gate must be one of {GATES}, not {gate!r}")
    channels, dtype = x.shape[1], compute_dtype(x)
    if reduce_weight.dim() not in (2, 4) or expand_weight.dim() not in (2, 4):
        raise ValueError("the two weights must be [R, C] and [C, R], or these with two axes of 1 behind")
    first, second = (weight.flatten(1).to(dtype) for weight in (reduce_weight, expand_weight))
    inner = first.shape[0]
    shapes = [tuple(tensor.shape) for tensor in (first, reduce_bias, second, expand_bias)]
    wanted = [(inner, channels), (inner,), (channels, inner), (channels,)]
    if shapes != wanted:
        raise ValueError(
            f"for {channels} channels and {inner} inner ones the weights and biases are {wanted}, not {shapes}"
        )
    return first, reduce_bias.to(dtype), second, expand_bias.to(dtype)


def open_gate(values: Tensor, gate: str) -> Tensor:
    """sigmoid, or hardsigmoid relu6(v + 3) / 6."""
    return torch.sigmoid(values) if gate == "sigmoid" else activate(values + 3, "relu6") / 6


def squeeze_excite_twin(
    x: Tensor,
    prologue: Prologue,
    first: Tensor,
    first_bias: Tensor,
    second: Tensor,
    second_bias: Tensor,
    act: str,
    gate: str,
) -> Tensor:
    """The definition, in plain PyTorch; the weights as matrices [R, C] and [C, R]."""
    activated = activate(before_activation(x, *prologue[:3]), prologue.act, prologue.slope)
    hidden = activate(activated.mean((2, 3)) @ first.t() + first_bias, act)
    return (activated * open_gate(hidden @ second.t() + second_bias, gate)[:, :, None, None]).to(x.dtype)


def excite(x, center, scale, shift, act, slope, first, first_bias, second, second_bias, inner, gate):
    """Pooled m [N, C], the inner layer [N, R], the gate's input and the gate [N, C]: one pass over x, then vectors."""
    if runs_triton(x) and x.numel():
        from kernels.device import excitation
        from kernels.device.squeeze_excite import pool

        part = pool(x, center, scale, shift, act, slope)
        pixels = x.shape[2] * x.shape[3]
        return excitation.excite(part, pixels, first, first_bias, second, second_bias, inner, gate)
    pooled = activate(before_activation(x, center, scale, shift), act, slope).mean((2, 3))
    with outside_autocast(x):
        hidden = pooled @ first.t() + first_bias
        logits = activate(hidden, inner) @ second.t() + second_bias
    return pooled, hidden, logits, open_gate(logits, gate)


def _apply_gate(x, center, scale, shift, act, slope, gate):
    if runs_triton(x) and x.numel():
        from kernels.device.squeeze_excite import apply_gate

        return apply_gate(x, center, scale, shift, act, slope, gate)
    values = activate(before_activation(x, center, scale, shift), act, slope) * gate[:, :, None, None]
    return torch.empty_like(x, memory_format=torch.channels_last).copy_(values)


def five_sums(grad, x, center, scale, shift, act, slope):
    """S1 to S5 of the module's head, [5, N, C]; by a kernel in parts, as it left them: [5, N, T, C]."""
    if runs_triton(x) and x.numel():
        from kernels.device.squeeze_excite import five_sums

        return five_sums(grad, x, center, scale, shift, act, slope)
    z = before_activation(x, center, scale, shift)
    da, steep = grad.to(z.dtype), derivative(z, act, slope)
    centred = x.to(z.dtype) if center is None else x - center[None, :, None, None]
    terms = (da * activate(z, act, slope), da * steep, da * steep * centred, steep, steep * centred)
    return torch.stack([term.sum((2, 3)) for term in terms])


def input_gradient(grad, x, center, scale, shift, act, slope, gate, constant):
    """dx = act'(z) · (gate · grad + constant) · scale."""
    if runs_triton(x) and x.numel():
        from kernels.device.squeeze_excite import input_gradient

        return input_gradient(grad, x, center, scale, shift, act, slope, gate, constant)
    z = before_activation(x, center, scale, shift)
    dz = (gate[:, :, None, None] * grad + constant[:, :, None, None]) * derivative(z, act, slope)
    if scale is not None:
        dz = dz * scale[None, :, None, None]
    return torch.empty_like(x, memory_format=torch.channels_last).copy_(dz)


@torch.library.custom_op("hcr::squeeze_excite", mutates_args=())
def squeeze_excite_op(
    x: Tensor,
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The output, and what backward keeps: pooled m [N, C], the inner layer [N, R], the gate's input [N, C]."""
    prologue = (center, scale, shift, act, slope)
    pooled, hidden, logits, opened = excite(x, *prologue, first, first_bias, second, second_bias, inner, gate)
    return _apply_gate(x, *prologue, opened), pooled, hidden, logits


@squeeze_excite_op.register_fake
def _(x, center, scale, shift, act, slope, first, first_bias, second, second_bias, inner, gate):
    pooled = x.new_empty(x.shape[:2], dtype=compute_dtype(x))
    hidden = x.new_empty((x.shape[0], first.shape[0]), dtype=compute_dtype(x))
    return torch.empty_like(x, memory_format=torch.channels_last), pooled, hidden, torch.empty_like(pooled)


@torch.library.custom_op("hcr::squeeze_excite_backward", mutates_args=())
def squeeze_excite_backward_op(
    grad: Tensor,
    x: Tensor,
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dx, Σ dz [C], Σ dz · (x - center) [C], and the gradients of both weights and biases."""
    grad = grad.contiguous(memory_format=torch.channels_last)
    prologue = (center, scale, shift, act, slope)
    sums = five_sums(grad, x, *prologue)
    opened, constant, *vectors = through_gate(
        sums, first, second, inner, gate, pooled, hidden, logits, x.shape[2] * x.shape[3]
    )
    return input_gradient(grad, x, *prologue, opened, constant), *vectors


def through_gate(sums, first, second, inner, gate, pooled, hidden, logits, pixels):
    """From the five sums: the gate and dm / HW [N, C], Σ dz, Σ dz · (x - center), gradients of weights and biases."""
    if sums.dim() == 4:
        from kernels.device import excitation

        return excitation.through_gate(sums, first, second, inner, gate, pooled, hidden, logits, pixels)
    s1, s2, s3, s4, s5 = sums
    opened = open_gate(logits, gate)
    steep = opened * (1 - opened) if gate == "sigmoid" else derivative(logits + 3, "relu6") / 6
    with outside_autocast(logits):
        d_logits = s1 * steep
        d_hidden = (d_logits @ second) * derivative(hidden, inner)
        constant = (d_hidden @ first) / max(pixels, 1)
        return (
            opened,
            constant,
            (opened * s2 + constant * s4).sum(0),
            (opened * s3 + constant * s5).sum(0),
            d_hidden.t() @ pooled,
            d_hidden.sum(0),
            d_logits.t() @ activate(hidden, inner),
            d_logits.sum(0),
        )


@squeeze_excite_backward_op.register_fake
def _(grad, x, center, scale, shift, act, slope, first, second, inner, gate, pooled, hidden, logits):
    per_channel, per_inner = pooled.new_empty(x.shape[1]), pooled.new_empty(first.shape[0])
    return (
        torch.empty_like(x, memory_format=torch.channels_last),
        per_channel,
        torch.empty_like(per_channel),
        pooled.new_empty(first.shape),
        per_inner,
        pooled.new_empty(second.shape),
        torch.empty_like(per_channel),
    )


def _setup_context(ctx, inputs, output):
    x, center, scale, shift, ctx.act, ctx.slope, first, _, second, _, ctx.inner, ctx.gate = inputs
    ctx.save_for_backward(x, center, scale, shift, first, second, *output[1:])


def _backward(ctx, grad, *_):
    x, center, scale, shift, first, second, *kept = ctx.saved_tensors
    dx, sum_dz, sum_dz_x, *weights = squeeze_excite_backward_op(
        grad, x, center, scale, shift, ctx.act, ctx.slope, first, second, ctx.inner, ctx.gate, *kept
    )
    vectors = prologue_gradients(scale, sum_dz, sum_dz_x)
    return dx, *vectors, None, None, *weights, None, None


squeeze_excite_op.register_autograd(_backward, setup_context=_setup_context)
