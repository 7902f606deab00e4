"""Pointwise backward. dY = dy + c1 + c2 · (y - mean) is formed in the loads; dz = act'(z) · dA in the epilogue.

Where the weight's gradient fits the registers, one kernel makes dx and dw from one read of everything
(2X + 2Y elements), output channels by blocks; elsewhere one kernel makes dx, and dw comes from another (3X + 4Y), or
from the library, for which the first leaves x' and dY (4X + 4Y, each formed once). Channels are cut as in the forward.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.device.launch import or_dummy, programs, small_tiles
from kernels.device.partials import finish
from kernels.device.pointwise import (
    block,
    layout,
    load_activated,
    multiply_add,
    precision,
    readable,
    rows_of,
    within,
)
from kernels.device.pointwise_math import activate, derivative, load_channels, normalise
from kernels.device.pointwise_tiles import back_tile, in_one_kernel, multiplied_by_library
from kernels.device.products import pixels_of, product
from kernels.product_routes import ONE_PASS_ELEMENTS, Sizes, padded


@triton.jit
def load_gradient(dy, y, row, channel, inside, known, mean, c1, c2, OUT: tl.constexpr, STATISTICS: tl.constexpr):
    """dY [BM, BO] in the images' dtype, zero outside."""
    mask = inside[:, None] & known[None, :]
    place = row[:, None] * OUT + channel[None, :]
    gradient = tl.load(dy + place, mask=mask, other=0.0)
    if STATISTICS:
        value = tl.load(y + place, mask=mask, other=0.0).to(tl.float32) - load_channels(mean, channel, known, True)
        linear = load_channels(c2, channel, known, True)
        total = gradient.to(tl.float32) + load_channels(c1, channel, known, True) + linear * value
        gradient = tl.where(mask, total, 0.0).to(gradient.dtype)
    return gradient


@triton.jit
def sum_lanes(values, LANES: tl.constexpr, BM: tl.constexpr, BL: tl.constexpr):
    """Σ of every LANES-th row [LANES, BL]: where a thread holds those rows, without asking another."""
    return tl.sum(tl.reshape(values, (BM // LANES, LANES, BL)), 0)


@triton.jit
def store_input_gradient(
    da, x, dx, activated, row, c, inside, real, center, scale, shift, C: tl.constexpr,
    AFFINE: tl.constexpr, ACT: tl.constexpr, SLOPE: tl.constexpr, KEPT: tl.constexpr,
    LANES: tl.constexpr, BM: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """dx = act'(z) · dA · scale, and x' where KEPT; returns the tile's sums of dz and dz · (x - center) [LANES, BL]."""
    mask = inside[:, None] & real[None, :]
    place = row[:, None] * C + c[None, :]
    dz = da
    sum_dz = tl.zeros((LANES, BL), tl.float32)
    sum_dz_x = sum_dz
    if AFFINE or ACT != "identity":
        mu = load_channels(center, c, real, AFFINE)
        a = load_channels(scale, c, real, AFFINE)
        b = load_channels(shift, c, real, AFFINE)
        value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
        z = normalise(value, mu, a, b, AFFINE)
        if KEPT:
            tl.store(activated + place, activate(z, ACT, SLOPE).to(activated.dtype.element_ty), mask=mask)
        dz = tl.where(inside[:, None], dz * derivative(z, ACT, SLOPE), 0.0)
        if AFFINE:
            sum_dz = sum_lanes(dz, LANES, BM, BL)
            sum_dz_x = sum_lanes(dz * (value - mu), LANES, BM, BL)
            dz = dz * a
    tl.store(dx + place, dz.to(dx.dtype.element_ty), mask=mask)
    return sum_dz, sum_dz_x


@triton.jit
def store_gated_gradient(
    da, x, out, row, c, inside, real, center, scale, shift, part, plane, C: tl.constexpr,
    AFFINE: tl.constexpr, ACT: tl.constexpr, SLOPE: tl.constexpr,
):  # fmt: skip
    """Store dA, the gradient of x' times the gate, and this tile's five sums of kernels.squeeze_excite [BL] each."""
    mask = inside[:, None] & real[None, :]
    place = row[:, None] * C + c[None, :]
    mu = load_channels(center, c, real, AFFINE)
    a = load_channels(scale, c, real, AFFINE)
    b = load_channels(shift, c, real, AFFINE)
    value = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    z = normalise(value, mu, a, b, AFFINE)
    tl.store(out + place, da.to(out.dtype.element_ty), mask=mask)
    tl.store(part + c, tl.sum(tl.where(inside[:, None], da * activate(z, ACT, SLOPE), 0.0), 0), mask=real)
    slope = tl.where(inside[:, None], derivative(z, ACT, SLOPE), 0.0)
    centred = value - mu
    tl.store(part + plane + c, tl.sum(da * slope, 0), mask=real)
    tl.store(part + 2 * plane + c, tl.sum(da * slope * centred, 0), mask=real)
    tl.store(part + 3 * plane + c, tl.sum(slope, 0), mask=real)
    tl.store(part + 4 * plane + c, tl.sum(slope * centred, 0), mask=real)


@triton.jit
def load_weight(
    w, dy, group, place, turn, run, real, L: tl.constexpr, SLICES: tl.constexpr, OG: tl.constexpr, BO: tl.constexpr
):  # fmt: skip
    """A block of w [O, SLICES · L] as [BO, BL] in dy's dtype."""
    o = turn * BO + tl.arange(0, BO)
    column = (group * OG + o)[:, None] * (SLICES * L) + (run * L + place)[None, :]
    return tl.load(w + column, mask=(o < OG)[:, None] & real[None, :], other=0.0).to(dy.dtype.element_ty)


@triton.jit
def input_tile(
    tile, tiles, group, run, place, whole, dy, y, mean, c1, c2, x, center, scale, shift, w, dx, part, kept_x, kept_dy,
    M, P, C: tl.constexpr, OUT: tl.constexpr, SLICES: tl.constexpr, L: tl.constexpr, OG: tl.constexpr,
    AFFINE: tl.constexpr, ACT: tl.constexpr, SLOPE: tl.constexpr, GATED: tl.constexpr, STATISTICS: tl.constexpr,
    WHOLE: tl.constexpr, KEPT: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BO: tl.constexpr, BL: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """dx of a row tile and an input block, its sums of dz and dz · (x - center) [BL]; `whole` is w where OG ≤ BO."""
    real = within(place, L, BL)
    c = run * (C // SLICES) + group * L + place
    _image, row, inside = rows_of(tile, M, P, GATED, WHOLE, BM)
    da = tl.zeros((BM, BL), tl.float32)
    for turn in range((OG + BO - 1) // BO):
        o = turn * BO + tl.arange(0, BO)
        known = within(o, OG, BO)
        channel = group * OG + o
        gradient = load_gradient(dy, y, row, channel, inside, known, mean, c1, c2, OUT, STATISTICS)
        if KEPT and STATISTICS:
            block = tl.program_id(0) % ((L + BL - 1) // BL)
            if block == 0:
                target = kept_dy + row[:, None] * OUT + channel[None, :]
                tl.store(target, gradient, mask=inside[:, None] & known[None, :])
        weight = whole if OG <= BO else load_weight(w, dy, group, place, turn, run, real, L, SLICES, OG, BO)
        da = multiply_add(gradient, weight, da, PRECISION)
    if GATED:
        plane = tl.cast(tiles, tl.int64) * C
        store_gated_gradient(
            da, x, dx, row, c, inside, real, center, scale, shift, part + tile.to(tl.int64) * C, plane,
            C, AFFINE, ACT, SLOPE,
        )  # fmt: skip
        sum_dz = tl.zeros((LANES, BL), tl.float32)
        sum_dz_x = sum_dz
    else:
        sum_dz, sum_dz_x = store_input_gradient(
            da, x, dx, kept_x, row, c, inside, real, center, scale, shift, C, AFFINE, ACT, SLOPE, KEPT, LANES, BM, BL
        )
    return sum_dz, sum_dz_x


@triton.jit
def input_kernel(
    dy, y, mean, c1, c2, x, center, scale, shift, w, dx, part, kept_x, kept_dy, M, P,
    C: tl.constexpr, OUT: tl.constexpr,
    GROUPS: tl.constexpr, SLICES: tl.constexpr, L: tl.constexpr, OG: tl.constexpr,
    AFFINE: tl.constexpr, ACT: tl.constexpr, SLOPE: tl.constexpr, GATED: tl.constexpr, STATISTICS: tl.constexpr,
    WHOLE: tl.constexpr, KEPT: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BO: tl.constexpr, BL: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Program (walker and input block, group): dx of every so many row tiles, and partial sums [walkers, 2, C].

    Only sums are worth a walk: without an affine prologue a program takes one row tile. GATED too, which leaves the
    gradient of the gated x' in place of dx, and the five sums of each tile [5, row tiles, C]. KEPT, without groups and
    slices, stores x' and dY for the weight's product.
    """
    BLOCKS: tl.constexpr = SLICES * ((L + BL - 1) // BL)
    program = tl.program_id(0)
    group = tl.program_id(1)
    tile = program // BLOCKS
    run = program % BLOCKS // (BLOCKS // SLICES)
    place = program % BLOCKS % (BLOCKS // SLICES) * BL + tl.arange(0, BL)
    tiles = (M // P) * tl.cdiv(P, BM) if GATED else tl.cdiv(M, BM)
    whole = w
    if OG <= BO:
        whole = load_weight(w, dy, group, place, 0, run, place < L, L, SLICES, OG, BO)
    if AFFINE and not GATED:
        all_dz = tl.zeros((LANES, BL), tl.float32)
        all_dz_x = tl.zeros((LANES, BL), tl.float32)
        while tile < tiles:
            sum_dz, sum_dz_x = input_tile(
                tile, tiles, group, run, place, whole, dy, y, mean, c1, c2, x, center, scale, shift, w, dx, part,
                kept_x, kept_dy, M, P, C, OUT, SLICES, L, OG, AFFINE, ACT, SLOPE, GATED, STATISTICS, WHOLE, KEPT,
                PRECISION, BM, BO, BL, LANES,
            )  # fmt: skip
            all_dz += sum_dz
            all_dz_x += sum_dz_x
            tile += tl.num_programs(0) // BLOCKS
        walker = (tl.program_id(0) // BLOCKS).to(tl.int64)
        own = part + walker * (2 * C) + run * (C // SLICES) + group * L + place
        tl.store(own, tl.sum(all_dz, 0), mask=place < L)
        tl.store(own + C, tl.sum(all_dz_x, 0), mask=place < L)
    else:
        input_tile(
            tile, tiles, group, run, place, whole, dy, y, mean, c1, c2, x, center, scale, shift, w, dx, part, kept_x,
            kept_dy, M, P, C, OUT, SLICES, L, OG, AFFINE, ACT, SLOPE, GATED, STATISTICS, WHOLE, KEPT, PRECISION,
            BM, BO, BL, LANES,
        )  # fmt: skip


@triton.jit
def weight_kernel(
    dy, y, mean, c1, c2, x, center, scale, shift, gate, part_w, M, P, C: tl.constexpr, OUT: tl.constexpr,
    GROUPS: tl.constexpr, SLICES: tl.constexpr, L: tl.constexpr, OG: tl.constexpr,
    AFFINE: tl.constexpr, ACT: tl.constexpr, SLOPE: tl.constexpr, GATED: tl.constexpr, STATISTICS: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr, BO: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """Program (input and output block, walker, group): part_w [walkers, O, L · SLICES] over every so many row tiles."""
    STEPS: tl.constexpr = (L + BL - 1) // BL
    step = tl.program_id(0) % (SLICES * STEPS)
    o = tl.program_id(0) // (SLICES * STEPS) * BO + tl.arange(0, BO)
    group = tl.program_id(2)
    known = o < OG
    channel = group * OG + o
    run = step // STEPS
    place = (step % STEPS) * BL + tl.arange(0, BL)
    real = place < L
    c = run * (C // SLICES) + group * L + place
    total = tl.zeros((BO, BL), tl.float32)
    tile = tl.program_id(1)
    tiles = (M // P) * tl.cdiv(P, BM) if GATED else tl.cdiv(M, BM)
    while tile < tiles:
        image, row, inside = rows_of(tile, M, P, GATED, False, BM)
        gradient = load_gradient(dy, y, row, channel, inside, known, mean, c1, c2, OUT, STATISTICS)
        value = load_activated(
            x, row, c, inside, real, center, scale, shift, gate + image * C, C, AFFINE, ACT, SLOPE, GATED
        )
        total = multiply_add(tl.trans(gradient), value, total, PRECISION)
        tile += tl.num_programs(1)
    walker = tl.program_id(1).to(tl.int64)
    column = place if SLICES == 1 else place * SLICES + run
    column = (walker * OUT + channel)[:, None] * (SLICES * L) + column[None, :]
    tl.store(part_w + column, total, mask=known[:, None] & real[None, :])


@triton.jit
def one_pass_kernel(
    dy, y, mean, c1, c2, x, center, scale, shift, w, dx, part_w, part, M,
    C: tl.constexpr, OUT: tl.constexpr,
    GROUPS: tl.constexpr, SLICES: tl.constexpr, L: tl.constexpr, OG: tl.constexpr,
    AFFINE: tl.constexpr, ACT: tl.constexpr, SLOPE: tl.constexpr, STATISTICS: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BO: tl.constexpr, BL: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Program (walker, group) with BL ≥ L: dx, part_w [walkers, O, L] and sums [walkers, 2, C].

    Output blocks follow one another: each forms its dY once, for its dw and for dA, which stays in registers.
    """
    BLOCKS: tl.constexpr = (OG + BO - 1) // BO
    group = tl.program_id(1)
    place = tl.arange(0, BL)
    real = place < L
    c = group * L + place
    weights = ()
    dw = ()
    for turn in tl.static_range(BLOCKS):
        weights = weights + (load_weight(w, dy, group, place, turn, 0, real, L, 1, OG, BO),)
        dw = dw + (tl.zeros((BO, BL), tl.float32),)
    all_dz = tl.zeros((LANES, BL), tl.float32)
    all_dz_x = tl.zeros((LANES, BL), tl.float32)
    tile = tl.program_id(0)
    while tile < tl.cdiv(M, BM):
        row = tile.to(tl.int64) * BM + tl.arange(0, BM)
        inside = row < M
        value = load_activated(x, row, c, inside, real, center, scale, shift, x, C, AFFINE, ACT, SLOPE, False)
        da = tl.zeros((BM, BL), tl.float32)
        new_dw = ()
        for turn in tl.static_range(BLOCKS):
            o = turn * BO + tl.arange(0, BO)
            gradient = load_gradient(dy, y, row, group * OG + o, inside, o < OG, mean, c1, c2, OUT, STATISTICS)
            new_dw = new_dw + (multiply_add(tl.trans(gradient), value, dw[turn], PRECISION),)
            da = multiply_add(gradient, weights[turn], da, PRECISION)
        dw = new_dw
        sum_dz, sum_dz_x = store_input_gradient(
            da, x, dx, x, row, c, inside, real, center, scale, shift, C, AFFINE, ACT, SLOPE, False, LANES, BM, BL
        )
        all_dz += sum_dz
        all_dz_x += sum_dz_x
        tile += tl.num_programs(0)
    walker = tl.program_id(0).to(tl.int64)
    for turn in tl.static_range(BLOCKS):
        o = turn * BO + tl.arange(0, BO)
        target = (walker * OUT + group * OG + o)[:, None] * L + place[None, :]
        tl.store(part_w + target, dw[turn], mask=(o < OG)[:, None] & real[None, :])
    if AFFINE:
        tl.store(part + walker * (2 * C) + c, tl.sum(all_dz, 0), mask=real)
        tl.store(part + walker * (2 * C) + C + c, tl.sum(all_dz_x, 0), mask=real)


def backward(
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
    groups: int,
    shuffle: int,
    needs_input: bool,
    needs_weight: bool,
    gate: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """dx, dweight [O, C / groups, 1, 1] in fp32, Σ dz [C], Σ dz · (x - center) [C]; None where not needed.

    With a gate [N, C] (no groups, no shuffle): the gradient of x' times the gate in place of dx, and in place of Σ dz
    the five sums of `kernels.squeeze_excite` over each of an image's tiles [5, N, T, C].
    """
    channels, outputs = x.shape[1], weight.shape[0]
    rows = x.numel() // channels
    cut = layout(channels, weight, groups, shuffle)
    wide, turing = x.dtype.itemsize == 4, small_tiles(x.device)
    flags = {
        "GROUPS": groups,
        "SLICES": cut.slices,
        "L": cut.length,
        "OG": cut.outputs,
        "AFFINE": center is not None,
        "ACT": act,
        "SLOPE": slope,
        "STATISTICS": y is not None,
        "PRECISION": precision(),
        "num_stages": 2,
        "maxnreg": 255,
    }
    gated = {"GATED": gate is not None}
    gradients = (dy, or_dummy(y, dy), or_dummy(mean, dy), or_dummy(c1, dy), or_dummy(c2, dy))
    prologue = (or_dummy(center, x), or_dummy(scale, x), or_dummy(shift, x))
    pixels = rows // x.shape[0] if gate is not None else rows
    sizes = (rows, channels, outputs)
    by_image = (rows, pixels, channels, outputs)

    def new(parts: int, *shape: int) -> Tensor:
        return torch.empty((parts, *shape), dtype=torch.float32, device=x.device)

    dx = part_w = part = None
    small = padded(cut.outputs) * padded(cut.length) <= ONE_PASS_ELEMENTS
    both = needs_input and needs_weight and gate is None
    layer = Sizes(channels, outputs, groups, shuffle, center is not None or act != "identity")
    one_pass = both and in_one_kernel(x, layer)
    kept = both and multiplied_by_library(x) and not one_pass and groups == shuffle == 1 and layer.opened
    kept_x = kept_dy = None
    if needs_input:
        dx = torch.empty_like(x, memory_format=torch.channels_last)
        tile = back_tile(cut, x, one_pass, small, kept)
        tiles = rows // pixels * triton.cdiv(pixels, tile.rows)
        steps = cut.slices * triton.cdiv(cut.length, tile.length)
        walkers = tiles
        if one_pass or (center is not None and gate is None):
            walkers = min(tiles, max(1, programs(x.device, tile.programs) // (groups * steps)))
        if gate is not None:
            part = new(5, tiles, channels)
        elif center is not None:
            part = new(walkers, 2, channels)
        if kept:
            kept_x, kept_dy = torch.empty_like(x), dy if y is None else torch.empty_like(dy)
        weights = readable(weight, cut, x.dtype, one_pass or cut.outputs <= tile.outputs)
        inputs = (*gradients, x, *prologue, weights, dx)
        blocks = {"BM": tile.rows, "BO": tile.outputs, "BL": tile.length, "num_warps": tile.warps}
        blocks["LANES"] = min(tile.rows, max(1, tile.warps * 32 * (16 // x.dtype.itemsize) // tile.length))
        if one_pass:
            part_w = new(walkers, outputs, cut.length)
            one_pass_kernel[(walkers, groups)](*inputs, part_w, or_dummy(part, x), *sizes, **flags, **blocks)
        else:
            input_kernel[(walkers * steps, groups)](
                *inputs, or_dummy(part, x), or_dummy(kept_x, x), or_dummy(kept_dy, dy), *by_image, **flags, **gated,
                WHOLE=pixels % tile.rows == 0, KEPT=kept, **blocks,
            )  # fmt: skip
    if kept_x is not None and kept_dy is not None:
        dweight = product(pixels_of(kept_dy).t(), pixels_of(kept_x), torch.float32).view(weight.shape)
        return dx, dweight, *finish(None, part)[1:]
    if needs_weight and not one_pass:
        in_block, out_block = block(cut.length, 64), block(cut.outputs, 64 if wide or turing else 128)
        steps = cut.slices * triton.cdiv(cut.length, in_block) * triton.cdiv(cut.outputs, out_block)
        row_tiles = rows // pixels * triton.cdiv(pixels, 32 if wide or turing else 64)
        walkers = min(row_tiles, max(1, programs(x.device, 4) // (steps * groups)))
        part_w = new(walkers, outputs, cut.slices * cut.length)
        weight_kernel[(steps, walkers, groups)](
            *gradients, x, *prologue, or_dummy(gate, x), part_w, *by_image, **flags, **gated,
            BM=32 if wide or turing else 64, BO=out_block, BL=in_block,
            num_warps=8 if not wide and (turing or gate is not None) else 4,
        )  # fmt: skip
    dweight, dz, dz_x = finish(part_w, part if gate is None else None)
    dweight = None if dweight is None else dweight.view(weight.shape)
    return dx, dweight, dz if gate is None or part is None else part.unflatten(1, (x.shape[0], -1)), dz_x
