"""The predicted step: what is launched, and what the tool says of bad input."""

from collections import Counter

import pytest
import torch

pytest.importorskip("triton.backends.nvidia")

from engine.bench import kernel_forecast
from engine.bench.kernel_forecast import library_calls, shape_of, step_of
from kernels.offline import Launch, kernel_name
from kernels.recorded import LibraryCall


def test_what_a_step_launches():
    """MobileNetV2: 17 depthwise layers forward and backward, each with one launch that finishes its sums."""
    launches = [call for call in step_of("mobilenetv2") if isinstance(call, Launch)]
    names = Counter(kernel_name(launch) for launch in launches)
    depthwise = ("depthwise.forward_kernel", "depthwise_backward.input_and_weight_kernel", "partials.finish_kernel")
    assert [names[name] for name in depthwise] == [17, 17, 17]
    shapes = {shape_of(launch) for launch in launches if kernel_name(launch) == depthwise[0]}
    assert "H=56 W=56 C=144 K=3 S=1 ACT=relu6 AFFINE=True STATISTICS=True" in shapes


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


def test_recording_leaves_no_kernel_caught():
    from triton.runtime.jit import JITFunction

    from kernels.recorded import recorded

    before = JITFunction.run
    with recorded() as calls:
        torch.empty(2, 4, device="meta").add(1)
    assert JITFunction.run is before and [call.name for call in calls] == ["add"]
