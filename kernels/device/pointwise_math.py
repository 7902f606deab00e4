"""What every kernel does to a value on its way in: normalise, activate, differentiate."""

import triton
import triton.language as tl

from kernels.device.launch import INTERPRETED

HARDWARE = tl.constexpr(not INTERPRETED)


@triton.jit
def sigmoid(z):
    """1 / (1 + 2^(-z · log₂ e)) by the hardware's own two functions: 2 ulp and 1 ulp (PTX ISA, ex2.approx, rcp.approx).

    Triton's exp and division handle denormals, with half the instructions of a SiLU; here they are zero, as is what is
    below 2^-126 of the result."""
    if HARDWARE:
        power = tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [z * -1.4426950408889634], dtype=tl.float32, is_pure=True, pack=1
        )
        z = tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [1.0 + power], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        z = 1.0 / (1.0 + tl.exp(-z))
    return z


@triton.jit
def activate(z, ACT: tl.constexpr, SLOPE: tl.constexpr):
    """`kernels.activation.activate` on a block; minimum and maximum carry NaN."""
    if ACT == "relu":
        z = tl.maximum(z, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACT == "relu6":
        z = tl.maximum(z, 0.0, propagate_nan=tl.PropagateNan.ALL)
        z = tl.minimum(z, 6.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACT == "leaky_relu":
        z = tl.where(z > 0.0, z, z * SLOPE)
    elif ACT == "silu":
        z = z * sigmoid(z)
    elif ACT == "hardswish":
        gate = tl.maximum(z + 3.0, 0.0, propagate_nan=tl.PropagateNan.ALL)
        gate = tl.minimum(gate, 6.0, propagate_nan=tl.PropagateNan.ALL)
        z = z * (gate / 6.0)
    return z


@triton.jit
def derivative(z, ACT: tl.constexpr, SLOPE: tl.constexpr):
    """`kernels.activation.derivative` on a block."""
    if ACT == "relu":
        d = tl.where(z <= 0.0, 0.0, 1.0)
    elif ACT == "relu6":
        d = tl.where((z <= 0.0) | (z >= 6.0), 0.0, 1.0)
    elif ACT == "leaky_relu":
        d = tl.where(z > 0.0, 1.0, SLOPE)
    elif ACT == "silu":
        gate = sigmoid(z)
        d = gate * (1.0 + z * (1.0 - gate))
    elif ACT == "hardswish":
        d = tl.where(z < 3.0, z / 3.0 + 0.5, 1.0)
        d = tl.where(z <= -3.0, 0.0, d)
    else:
        d = tl.full(z.shape, 1.0, tl.float32)
    return d


@triton.jit
def load_channels(pointer, c, mask, PRESENT: tl.constexpr, AGAIN: tl.constexpr = False):
    """A per-channel fp32 vector as a row [1, BC]; zeros where the tensor is absent.

    AGAIN reads it anew: Triton would otherwise keep the registers of an earlier read, and spill others.
    """
    if PRESENT and AGAIN:
        values = tl.load(pointer + c, mask=mask, other=0.0, eviction_policy="evict_last").to(tl.float32)
    elif PRESENT:
        values = tl.load(pointer + c, mask=mask, other=0.0).to(tl.float32)
    else:
        values = tl.zeros(c.shape, tl.float32)
    return values[None, :]


@triton.jit
def normalise(x, center, scale, shift, AFFINE: tl.constexpr):
    """z = (x - center) · scale + shift, subtracting first: a large mean would cancel in x · scale + shift'."""
    if AFFINE:
        x = (x - center) * scale + shift
    return x


@triton.jit
def merge_lanes(count, mean, m2):
    """Chan's formula over axis 0: counts [B], means and M2 [B, BC] -> count, mean [BC], M2 [BC]."""
    total = tl.sum(count, 0)
    divisor = tl.maximum(total, 1.0)
    merged = tl.sum(count[:, None] * mean, 0) / divisor
    difference = mean - merged[None, :]
    return total, merged, tl.sum(m2 + count[:, None] * difference * difference, 0)
