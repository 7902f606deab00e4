"""The predicted step: what is launched, and the committed table against the code."""

import json
from collections import Counter

import pytest
import torch

pytest.importorskip("triton.backends.nvidia")

from engine.bench import kernel_forecast
from engine.bench.kernel_forecast import TABLE, counted, library_calls, shape_of, step_of
from kernels.forecast import blocks_at_once
from kernels.offline import Launch, kernel_name
from kernels.recorded import LibraryCall

HELD = ("depthwise.forward_kernel", "depthwise_backward.input_and_weight_kernel", "norm_act.forward_kernel")
"""Compiled anew by the test that is not slow, one launch each."""


@pytest.fixture(scope="module")
def table():
    return json.loads(TABLE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def calls():
    return step_of("mobilenetv2")


@pytest.fixture(scope="module")
def launches(calls):
    return [call for call in calls if isinstance(call, Launch)]


def held(row, launch):
    """A row of the table is what the launch is when it is compiled now."""
    found = counted(launch)
    same = (row["registers"], row["warps"], row["bytes"], row["warps_at_once"])
    assert same == (found.registers, found.warps, found.moved_bytes, blocks_at_once(found) * found.warps), row
    assert row["instructions"] == round(found.work.instructions * found.programs * found.warps), row


def test_the_table_lists_what_a_step_launches(table, launches):
    rows = table["networks"]["mobilenetv2"]
    assert rows["launches"] == len(launches) == sum(row["times"] for row in rows["kernels"])
    found = {(row["kernel"], row["shape"], tuple(row["grid"])) for row in rows["kernels"]}
    assert found == {(kernel_name(one), shape_of(one), one.grid) for one in launches}
    assert set(table["networks"]) == set(kernel_forecast.NETWORKS)


def test_a_few_kernels_are_those_of_the_table(table, launches):
    compare_versions(table)
    for name in HELD:
        row = next(row for row in table["networks"]["mobilenetv2"]["kernels"] if row["kernel"] == name)
        same = (launch for launch in launches if kernel_name(launch) == name)
        held(row, next(one for one in same if (shape_of(one), list(one.grid)) == (row["shape"], row["grid"])))


@pytest.mark.slow
@pytest.mark.parametrize("arch", kernel_forecast.NETWORKS)
def test_every_kernel_is_that_of_the_table(table, arch):
    compare_versions(table)
    launches = {(kernel_name(one), shape_of(one), one.grid): one for one in step_of(arch) if isinstance(one, Launch)}
    for row in table["networks"][arch]["kernels"]:
        held(row, launches[row["kernel"], row["shape"], tuple(row["grid"])])


def compare_versions(table):
    """Skip where another Triton than the table's is at work: it makes other code."""
    import triton

    if table["versions"]["triton"] != triton.__version__:
        pytest.skip(f"the table is Triton {table['versions']['triton']}'s, here is {triton.__version__}")


def test_one_launch_finishes_all_sums_of_a_layer(launches):
    """MobileNetV2: 17 depthwise and 34 pointwise layers, and 19 passes that settle a map.

    Of the pointwise layers 2 leave their forward product to the library; backward 7 are one kernel, 9 leave x' and dY
    to a product, and of the 18 that leave all to the library 7 have a prologue, whose pass sums."""
    names = Counter(kernel_name(launch) for launch in launches)
    depthwise = ("depthwise.forward_kernel", "depthwise_backward.input_and_weight_kernel")
    assert [names[name] for name in depthwise] == [17, 17]
    assert names["pointwise.forward_kernel"] == 34 - 2 and names["norm_act.backward_kernel"] == 19 + 7
    assert names["pointwise_backward.one_pass_kernel"] == 7 and names["pointwise_backward.input_kernel"] == 9
    assert names["pointwise_backward.weight_kernel"] == 0 and names["norm_act.batch_norm_backward_kernel"] == 18 + 1
    assert names["partials.finish_kernel"] == 17 + 19 + 7 + 9 + 7
    shapes = {shape_of(launch) for launch in launches if kernel_name(launch) == depthwise[0]}
    assert "H=56 W=56 C=144 K=3 S=1 ACT=relu6 AFFINE=True STATISTICS=True" in shapes


def test_launches_of_a_step(calls, launches):
    """MobileNetV2, the library's calls included: 593 until each layer's sums were finished by one launch."""
    library = library_calls(calls)
    assert len(launches) + len(library) <= 470
    assert not [call for call in library if call.inside and call.name == "sum"]
    merges = sum(kernel_name(launch) == "statistics.merge_kernel" for launch in launches)
    assert merges <= 64  # of 52 BatchNorms: two where more than 1024 partials are left


def test_the_vectors_of_an_excitation_are_three_launches():
    """EfficientNet-B0: 16 of them; inside operators the library has at most the gate of the backward pass to open."""
    calls = step_of("efficientnet_b0")
    names = Counter(kernel_name(call) for call in calls if isinstance(call, Launch))
    found = [count for name, count in sorted(names.items()) if name.startswith("excitation.")]
    assert found == [16, 16, 16]
    inside = Counter(call.name for call in calls if isinstance(call, LibraryCall) and call.inside)
    assert inside["matmul"] == inside["exp"] == 0 and inside["sigmoid"] <= 16


def test_small_calls_between_operators_are_one_launch():
    small, large = LibraryCall("mul", 64, False), LibraryCall("add", 1 << 30, False)
    inside = LibraryCall("sum", 64, True)
    launch = Launch(None, {}, {}, [], {})
    assert library_calls([small, small, launch, inside, inside, small, large, small]) == [
        small, inside, inside, small, large, small,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give --network, --write or --calibrate"),
        (["--network", "mobilenetv2", "--gpu", "a100"], "--gpu a100"),
        (["--calibrate", "cpu2-avx512"], "--calibrate cpu2-avx512"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(arguments, said, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["kernel_forecast", *arguments])
    with pytest.raises(SystemExit) as error:
        kernel_forecast.main()
    assert error.value.code == 2 and said in capsys.readouterr().err


def test_a_product_is_recorded_with_its_operations():
    from kernels.recorded import recorded

    with recorded() as calls:
        a, b = torch.empty(4, 8, device="meta"), torch.empty(8, 2, device="meta")
        torch.mm(a, b)
        torch.addmm(torch.empty(2, device="meta"), a, b)
        torch.mm(a.bfloat16(), b.bfloat16(), out_dtype=torch.float32)
        a.add(1)
    products = {"mm", "addmm"}
    assert [call.operations for call in calls if call.name in products] == [2 * 4 * 8 * 2] * 3
    assert not any(call.operations for call in calls if call.name not in products)


def test_recording_leaves_no_kernel_caught():
    from triton.runtime.jit import JITFunction

    from kernels.recorded import recorded

    before = JITFunction.run
    with recorded() as calls:
        torch.empty(2, 4, device="meta").add(1)
    assert JITFunction.run is before and [call.name for call in calls] == ["add"]
