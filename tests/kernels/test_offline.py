"""Machine code for GPUs that are not here: nothing spills, blocks fit, and maps move 16 bytes a thread."""

import json
import math

import pytest
import torch

pytest.importorskip("triton.backends.nvidia")

from kernels.device import depthwise, depthwise_backward, norm_act
from kernels.device.launch import compiling_for
from kernels.machine_code import read, turns_of, work
from kernels.offline import ARCHITECTURES, CASES, TABLE, compile_for, kernel_name, launches_of, machine_code, table

NARROW = {
    "shuffle.shuffle_kernel": "g sources, g elements apart",
    "statistics.merge_kernel": "vectors of partials",
}
"""Kernels without 16-byte loads of maps, and why."""
BY_THREAD = ("depthwise.forward_kernel", "depthwise_backward.input_and_weight_kernel")
"""Kernels with a few channels a thread, so that its tile of pixels fits the registers."""
ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}
REGISTERS_OF_A_MULTIPROCESSOR = 65536
STREAMING = ("norm_act.", "shuffle.", "squeeze_excite.", "statistics.")
STREAMING_BLOCKS = 5
"""Blocks of a kernel that only streams that must fit a multiprocessor together: loads in flight hide the latency."""


def hold(row):
    """No spill, registers that let blocks run, 16-byte loads of maps and none of two bytes."""
    instructions = row["instructions"]
    assert row["spilled_bytes"] == 0 and not {"LDL", "STL"} & instructions.keys(), row
    blocks = REGISTERS_OF_A_MULTIPROCESSOR // (row["registers"] * 32 * row["num_warps"])
    assert row["registers"] <= 255 and blocks >= (STREAMING_BLOCKS if row["kernel"].startswith(STREAMING) else 1), row
    if row["kernel"] in BY_THREAD:
        forward = row["kernel"] == "depthwise.forward_kernel"
        size = int(row["case"].removeprefix("depthwise ")[0])
        channels = depthwise.CHANNELS_A_THREAD[size] if forward else depthwise_backward.CHANNELS_A_THREAD
        wide = {4: "32", 8: "64", 16: "128"}[channels * ITEMSIZE[row["dtype"]]]
        taps = instructions.get("LDG.U16", 0)  # for K > 3 in the images' dtype, one by one
        assert instructions.get(f"LDG.{wide}", 0) > taps and (size > 3 or not taps), row
    elif row["kernel"] not in NARROW:
        assert instructions.get("LDG.128", 0) + instructions.get("LDGSTS.128", 0) > 0, row
        assert not {"LDG.U16", "LDG.U8", "LDGSTS.U16"} & instructions.keys(), row
    if row["kernel"] == "depthwise_backward_by_rows.input_kernel":  # the channel vectors too are loaded whole there
        assert not {"LDG.32", "LDG.64"} & instructions.keys(), row


def test_a_kernel_of_each_kind_compiles_for_hopper():
    rows = table(["depthwise 3x3 stride 1"], [90])
    assert len(rows) == 9
    for row in rows:
        hold(row)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_kernel_for_every_architecture(case):
    for row in table([case]):
        hold(row)


def test_the_committed_table_is_whole_and_has_no_spill():
    """Every kernel that a case launches, in every dtype that the architecture has: sm_75 without bf16."""
    assert {sm: len(dtypes) for sm, dtypes in ARCHITECTURES.items()} == {75: 2, 80: 3, 90: 3}
    rows = json.loads(TABLE.read_text(encoding="utf-8"))["kernels"]
    found = [(row["case"], row["kernel"], row["dtype"], row["sm"]) for row in rows]
    wanted = set()
    for sm, dtypes in ARCHITECTURES.items():
        with compiling_for(sm):
            for case, launches in CASES.items():
                for dtype in dtypes:
                    names = {kernel_name(launch) for launch in launches(dtype)}
                    wanted |= {(case, name, str(dtype).removeprefix("torch."), sm) for name in names}
    assert len(found) == len(set(found)) and set(found) == wanted
    for row in rows:
        hold(row)


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 16])
def test_a_single_pixel_compiles(channels):
    """One image of one pixel: Triton makes constants of arguments that are 1, which have no methods of a tensor."""
    from kernels.device import depthwise, depthwise_backward, norm_act, pointwise, pointwise_backward, squeeze_excite

    x = torch.empty(1, channels, 1, 1, dtype=torch.bfloat16, device="meta")
    vector, gate = torch.empty(channels, device="meta"), torch.empty(1, channels, device="meta")
    weight = torch.empty(channels, channels, 1, 1, device="meta")
    prologue = (vector, vector, vector, "silu", 0.01)

    def one_by_one():
        squeeze_excite.pool(x, *prologue)
        squeeze_excite.five_sums(x, x, *prologue)
        squeeze_excite.input_gradient(x, x, *prologue, gate, gate)
        norm_act.forward(x, *prologue[:3], x, "silu", 0.01, "after")
        pointwise.forward(x, weight, *prologue, 1, 1, True, gate)
        pointwise_backward.backward(x, vector, vector, x, weight, x, vector, *prologue, 1, 1, True, True, gate)

    def one_pass():
        pointwise.forward(x, weight, *prologue, 1, 1, True)
        pointwise_backward.backward(x, vector, vector, x, weight, x, vector, *prologue, 1, 1, True, True)

    def by_taps(size):
        taps = torch.empty(channels, 1, size, size, device="meta")
        depthwise.forward(x, taps, *prologue, 1, [size // 2] * 2, True)
        arguments = (x, vector, vector, x, taps, x, vector, *prologue, 1, [size // 2] * 2)
        depthwise_backward.backward(*arguments, True, True)

    for operation in (one_by_one, one_pass, lambda: by_taps(3), lambda: by_taps(5)):
        for launch in launches_of(operation, without=()):
            assert compile_for(launch, 90)["spilled_bytes"] == 0


@pytest.mark.parametrize(
    ("channels", "side", "size", "stride", "forward_most", "backward_most"),
    [
        (144, 56, 3, 1, 40, 80),
        pytest.param(384, 14, 3, 1, 40, 80, marks=pytest.mark.slow),
        pytest.param(96, 112, 3, 2, 60, 40, marks=pytest.mark.slow),
        pytest.param(960, 7, 3, 1, 40, 80, marks=pytest.mark.slow),
    ],
)
def test_instructions_of_a_depthwise_layer(channels, side, size, stride, forward_most, backward_most):
    """Counted for sm_90 at MobileNetV2's shapes, 128 images, bf16, relu6: a forward output, a backward pixel."""
    out = (side + 2 * (size // 2) - size) // stride + 1
    x, y = (torch.empty(128, channels, n, n, dtype=torch.bfloat16, device="meta") for n in (side, out))
    vector, weight = torch.empty(channels, device="meta"), torch.empty(channels, 1, size, size, device="meta")
    arguments = (vector, vector, vector, "relu6", 0.01, stride, [size // 2] * 2)

    def both():
        depthwise.forward(x, weight, *arguments, True)
        depthwise_backward.backward(y, vector, vector, x, weight, y, vector, *arguments, True, True)

    with compiling_for(90, multiprocessors=132):
        forward, backward, _finish = launches_of(both)
    for launch, useful, most in (
        (forward, 128 * channels * out * out, forward_most),
        (backward, 128 * channels * side * side, backward_most),
    ):
        usage, listing = machine_code(launch, 90)
        executed = work(read(listing), turns_of(kernel_name(launch), launch.values, launch.grid)).instructions
        programs = math.prod(launch.grid) * launch.options["num_warps"]
        assert 32 * executed * programs / useful <= most
        assert usage["spilled_bytes"] == 0
        assert REGISTERS_OF_A_MULTIPROCESSOR // (32 * -(-usage["registers"] // 8) * 8) >= 12  # warps at once


def test_multiplications_and_additions_are_joined():
    """Whatever Triton's own default is: 3.10 turns it off."""
    import triton

    assert triton.knobs.language.default_fp_fusion and not triton.knobs.language.force_disable_fp_fusion
    vector, x = torch.empty(96, device="meta"), torch.empty(8, 96, 28, 28, dtype=torch.bfloat16, device="meta")
    (launch,) = launches_of(lambda: norm_act.forward(x, vector, vector, vector, None, "relu", 0.01, "none"), without=())
    _, listing = machine_code(launch, 90)
    assert any(one.opcode.startswith("FFMA") for one in read(listing))
