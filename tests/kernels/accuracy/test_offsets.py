"""Tensors of more than 2³¹ elements: the last image of one, by the real kernels in Triton's interpreter.

The interpreter computes offsets in the kernels' own integer types, so a product of 32 bits wraps as on a GPU. The large
tensors are allocated and never filled: only the pages of the last image are touched. Of the grid only the programs of
that image run, and each must leave the bits that it leaves where the image is alone.
"""

import os
from contextlib import contextmanager
from unittest import mock

import pytest
import torch

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs the interpreter's integers")

CHANNELS, SIDE = 64, 8
IMAGES = 2**31 // (CHANNELS * SIDE * SIDE) + 1
WALKERS = {
    "input_and_weight_kernel": 0,
    "input_kernel": 0,
    "weight_kernel": 0,
    "one_pass_kernel": 0,
    "backward_kernel": 0,
}
"""Kernels whose programs walk tiles from their own number on, by the grid's axis that counts them."""


@contextmanager
def programs(of=None, tiles=0, axes=WALKERS):
    """Within, grids are listed by kernel; with `of`, the grids of one image's run, only the last image's programs run.

    tiles  in one image, of the kernels that walk them, or by kernel
    """
    from triton.runtime import interpreter

    builder, executor = interpreter.interpreter_builder, interpreter.GridExecutor
    plain_call, plain_id, plain_set = executor.__call__, builder.create_get_program_id, builder.set_grid_idx
    grids, state = {}, {"shift": (0, 0, False), "asked": set()}

    plain_empty = torch.empty

    def empty(*shape, **options):  # walkers that do not run leave nothing for the sum of all
        made = plain_empty(*shape, **options)
        return made.zero_() if made.numel() < 2**24 else made

    def call(self, *arguments, **keywords):
        name, grid = self.fn.__name__, self.grid
        grids[name] = grid
        if of is not None:
            self.grid = of[name]
            walks = axes.get(name)
            by_image = tiles[name] if isinstance(tiles, dict) and walks is not None else tiles
            state["shift"] = (
                (walks, (IMAGES - 1) * by_image, True) if walks is not None else (0, grid[0] - of[name][0], False)
            )
        return plain_call(self, *arguments, **keywords)

    def set_grid_idx(x, y, z):
        state["asked"] = set()
        plain_set(x, y, z)

    def program_id(axis):
        handle = plain_id(axis)
        shifted, amount, once = state["shift"]
        # A walker's number is asked for again where it leaves its partial sums: that one is its own.
        if axis == shifted and not (once and axis in state["asked"]):
            state["asked"].add(axis)
            handle.data = handle.data + handle.data.dtype.type(amount)
        return handle

    with (
        mock.patch.object(torch, "empty", empty),
        mock.patch.object(executor, "__call__", call),
        mock.patch.object(executor, "_restore_args_dev", lambda *_: None),  # would write every page to itself
        mock.patch.object(builder, "set_grid_idx", set_grid_idx),
        mock.patch.object(builder, "create_get_program_id", program_id),
    ):
        yield grids


def large(image):
    """[IMAGES, C, H, W] channels-last whose last image is `image` and whose others are not in memory."""
    maps = torch.empty(IMAGES, SIDE, SIDE, CHANNELS, dtype=image.dtype).permute(0, 3, 1, 2)
    assert maps.numel() > 2**31
    maps[-1:] = image
    return maps


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


def check(operation, maps, tiles=0, axes=WALKERS):
    """`operation(*maps)` leaves the same last image in every map that it returns, and the same sums of it."""
    images = [draw(1, CHANNELS, SIDE, SIDE).half().contiguous(memory_format=torch.channels_last) for _ in range(maps)]
    with programs() as grids:
        wanted = operation(*images)
    with programs(grids, tiles, axes):
        found = operation(*map(large, images))
    compared = 0
    for value, reference in zip(found, wanted, strict=True):
        if value is not None:
            assert torch.equal(value[-1:] if value.ndim == 4 and len(value) == IMAGES else value, reference)
            compared += 1
    assert compared


VECTOR = draw(CHANNELS)
PROLOGUE = (VECTOR, VECTOR.abs(), VECTOR, "silu", 0.01)


def taps(size):
    return draw(CHANNELS, 1, size, size)


@pytest.mark.parametrize("size", [3, pytest.param(5, marks=pytest.mark.slow)])
def test_depthwise_forward(size):
    from kernels.device.depthwise import forward

    check(lambda x: forward(x, taps(size), *PROLOGUE, 1, [size // 2] * 2, False)[:1], 1)


@pytest.mark.slow
@pytest.mark.parametrize("size", [3, 5, 7])
def test_depthwise_backward(size):
    """K = 7 by rows: two lines of cells a tile for dx, an output line for dw."""
    from kernels.device import depthwise_backward as device

    def run(dy, x, y, needs_input=True, needs_weight=True):
        arguments = (dy, VECTOR, VECTOR, x, taps(size), y, VECTOR, *PROLOGUE, 1, [size // 2] * 2)
        return device.backward(*arguments, needs_input, needs_weight)

    if size == 7:
        check(lambda *maps: run(*maps, needs_weight=False), 3, tiles=SIDE // 2)
        check(lambda *maps: run(*maps, needs_input=False), 3, tiles=SIDE)
        return
    cut = device.tile(CHANNELS, SIDE, SIDE, size, 1)
    programs_a_tile = -(-CHANNELS // cut.channels)
    check(run, 3, tiles=-(-SIDE // cut.rows) * -(-SIDE // (cut.lanes * cut.columns)) * programs_a_tile)


def matrix(outputs):
    return draw(outputs, CHANNELS, 1, 1) / 8


def test_pointwise_forward():
    from kernels.device.pointwise import forward

    check(lambda x: forward(x, matrix(CHANNELS), *PROLOGUE, 1, 1, False)[:1], 1)


@pytest.mark.parametrize(
    ("groups", "tiles", "axes"),
    [
        (1, 2, {"one_pass_kernel": 0}),
        (2, {"input_kernel": 2, "weight_kernel": 1}, {"input_kernel": 0, "weight_kernel": 1}),
    ],
    ids=["one pass", "two passes"],
)
def test_pointwise_backward(groups, tiles, axes):
    """Shuffled groups take two passes. In one pass there are more walkers than an image has tiles: dx is compared."""
    from kernels.device.pointwise_backward import backward

    def run(dy, x, y):
        weight = draw(CHANNELS, CHANNELS // groups, 1, 1) / 8
        results = backward(dy, VECTOR, VECTOR, x, weight, y, VECTOR, *PROLOGUE, groups, groups, True, True)
        return results[: 1 if groups == 1 else None]

    check(run, 3, tiles, axes)


def test_norm_act():
    from kernels.device import norm_act

    def run(x, residual):
        sums = norm_act.backward(residual, x, *PROLOGUE[:3], residual, "silu", 0.01, "before")
        return (
            norm_act.forward(x, *PROLOGUE[:3], residual, "silu", 0.01, "before"),
            *sums[:2],
            norm_act.batch_norm_backward(residual, x, *PROLOGUE[:3])[0],
        )

    check(run, 2, tiles=SIDE * SIDE // (norm_act.BACKWARD_STEPS * norm_act.ROWS))


@pytest.mark.parametrize("groups", [2, 4, CHANNELS // 2])
def test_shuffle(groups):
    from kernels.device.shuffle import forward

    check(lambda x: (forward(x, groups),), 1)


def test_statistics():
    from kernels.device import statistics

    def run(x):
        with mock.patch.object(statistics, "merge", lambda _, mean, m2: (mean[-1], m2[-1])):
            return statistics.batch_statistics(x)

    check(run, 1)


@pytest.mark.slow
def test_squeeze_excite():
    from kernels.device import squeeze_excite as device

    def run(x, dy):
        gate = draw(1, CHANNELS).expand(len(x), CHANNELS).contiguous()
        return (
            device.pool(x, *PROLOGUE)[-1],
            device.apply_gate(x, *PROLOGUE, gate),
            device.five_sums(dy, x, *PROLOGUE)[:, -1],
            device.input_gradient(dy, x, *PROLOGUE, gate, gate),
        )

    check(run, 2, axes={})


@pytest.mark.slow
def test_excited_pointwise():
    from kernels.device import pointwise, pointwise_backward

    def run(x, dy):
        gate = draw(1, CHANNELS).expand(len(x), CHANNELS).contiguous()
        da, dweight, sums, _ = pointwise_backward.backward(
            dy, None, None, x, matrix(CHANNELS), None, None, *PROLOGUE, 1, 1, True, True, gate
        )
        return pointwise.forward(x, matrix(CHANNELS), *PROLOGUE, 1, 1, False, gate)[0], da, dweight, sums[:, -1]

    check(run, 2, tiles=1, axes={"weight_kernel": 1})
