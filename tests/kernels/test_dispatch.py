"""Who convolves: never a kernel without a measurement, never where the library was faster."""

import json
import logging
import os
from importlib.metadata import version

import pytest
import torch

from kernels import conv, depthwise_conv2d, dispatch
from kernels.dispatch import (
    choose,
    fuses,
    gpu_key,
    kernel_for,
    layer_key,
    measured,
    networks_measured,
    speedups,
    taken_on,
    worth_it,
)

IMAGES = torch.empty(2, 32, 56, 56, device="meta")
DEPTHWISE = (torch.empty(32, 1, 3, 3, device="meta"), (2, 2), (1, 1), 32)
POINTWISE = (torch.empty(64, 32, 1, 1, device="meta"), (1, 1), (0, 0), 1)
KEY = layer_key("depthwise", 32, 32, 56, 56, 3, 2, 32, "float32")


@pytest.mark.parametrize(
    ("weight", "stride", "padding", "groups", "path"),
    [
        (*DEPTHWISE, "depthwise"),
        (*POINTWISE, "pointwise"),
        (torch.empty(64, 32, 1, 1), (2, 2), (0, 0), 1, "aten"),
        (torch.empty(64, 32, 1, 1), (1, 1), (1, 1), 1, "aten"),
        (torch.empty(32, 1, 3, 3), (1, 2), (1, 1), 32, "aten"),
        (torch.empty(64, 1, 3, 3), (1, 1), (1, 1), 32, "aten"),
        (torch.empty(32, 1, 3, 5), (1, 1), (1, 1), 32, "aten"),
        (torch.empty(32, 8, 3, 3), (1, 1), (1, 1), 4, "aten"),
    ],
)
def test_which_kernel_could(weight, stride, padding, groups, path):
    assert kernel_for(IMAGES, weight, stride, padding, groups) == path


def test_on_takes_the_kernel_and_off_the_library():
    assert choose(IMAGES, *DEPTHWISE, fused="on") == "depthwise"
    assert choose(IMAGES, *POINTWISE, fused="on") == "pointwise"
    assert choose(IMAGES, *DEPTHWISE, fused="off") == "aten"
    assert choose(IMAGES.double(), *DEPTHWISE, fused="on") == "aten"


@pytest.mark.parametrize(
    ("table", "path"), [({}, "aten"), ({KEY: 0.94}, "aten"), ({KEY: 0.96}, "depthwise"), ({KEY + "x": 3.0}, "aten")]
)
def test_auto_follows_the_table(table, path):
    assert choose(IMAGES, *DEPTHWISE, taken=worth_it(table)) == path


def test_an_excitation_is_measured_as_an_op_of_its_own():
    plain = layer_key("pointwise", 32, 64, 56, 56, 1, 1, 1, "float32")
    table = {plain: 2.0, plain.replace("pointwise", "excited"): 0.5}
    assert choose(IMAGES, *POINTWISE, taken=worth_it(table)) == "pointwise"
    assert choose(IMAGES, *POINTWISE, taken=worth_it(table), excited=True) == "aten"
    excited = worth_it({plain.replace("pointwise", "excited"): 1.0})
    assert choose(IMAGES, *POINTWISE, taken=excited, excited=True) == "pointwise"
    assert choose(IMAGES, *DEPTHWISE, fused="on", excited=True) == "aten"
    grouped = (torch.empty(64, 16, 1, 1, device="meta"), (1, 1), (0, 0), 2)
    assert choose(IMAGES, *grouped, fused="on", excited=True) == "aten"


def put_table(folder, gpu, held, **changes):
    """A file of the suite `kernels`, as this machine's Triton would have it."""
    document = {"schema": 2, "machine": {"key": gpu}, "versions": {"triton": version("triton")}, "rows": held} | changes
    path = folder / gpu / "kernels.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(document))
    return path


def test_a_kernel_is_held_to_what_would_be_taken_in_its_place():
    """Not to a compiled layer of the library's, where the same operator with its convolution was timed."""
    row = {"layer": KEY, "library_seconds": 1.0, "aten_seconds": 3.0, "kernel_seconds": 2.0}
    assert speedups([row]) == {KEY: 1.5} and speedups([row | {"aten_seconds": None}]) == {KEY: 0.5}


ROWS = {KEY: {"status": "measured", "figures": {"layer": KEY, "library_seconds": 3.0, "kernel_seconds": 2.0}}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schema": 3}, "is of schema 3, this program reads 2"),
        ({"machine": {"key": "a100"}}, "was measured on a100, here is h200"),
        ({"versions": {"triton": "3.0"}}, "was measured with Triton 3.0, here is"),
        ({"versions": {}}, "was measured with Triton of an unknown version"),
        ({"rows": [1, 2]}, "is no table of measurements"),
        ({"rows": {KEY: {"status": "measured"}}}, "is no table of measurements"),
    ],
)
def test_a_table_that_does_not_hold_here_is_said_and_not_used(tmp_path, caplog, changes, words):
    put_table(tmp_path, "h200", ROWS)
    assert measured("h200", tmp_path) == {KEY: 1.5}
    path = put_table(tmp_path, "h200", ROWS, **changes)
    os.utime(path, ns=(1, 1))
    with caplog.at_level(logging.WARNING, logger="hcr"):
        assert measured("h200", tmp_path) == {} == networks_measured("h200", tmp_path)
    assert [words in record.message for record in caplog.records] == [True]  # once, however often it is asked


def test_a_torn_table_is_said_and_not_used(tmp_path, caplog):
    path = put_table(tmp_path, "h200", ROWS)
    path.write_text(path.read_text()[:-9])
    with caplog.at_level(logging.WARNING, logger="hcr"):
        assert measured("h200", tmp_path) == {}
    assert "is no table of measurements (JSONDecodeError): not used" in caplog.text


def test_a_table_that_this_process_writes_is_read_again(tmp_path):
    path = put_table(tmp_path, "h200", {})
    os.utime(path, ns=(1, 1))
    assert measured("h200", tmp_path) == {}
    put_table(tmp_path, "h200", ROWS)
    assert measured("h200", tmp_path) == {KEY: 1.5}


def test_a_table_is_read_from_the_report(tmp_path):
    rows = [
        {"layer": KEY, "library_seconds": 3.0, "kernel_seconds": 2.0},
        {"layer": "no library time", "library_seconds": None, "kernel_seconds": 2.0},
    ]
    assert speedups(rows) == {KEY: 1.5}
    assert gpu_key("NVIDIA H100 80GB HBM3") == "h100-80gb-hbm3"
    put_table(tmp_path, "h100-80gb-hbm3", {row["layer"]: {"status": "measured", "figures": row} for row in rows})
    assert measured("h100-80gb-hbm3", tmp_path) == {KEY: 1.5}
    assert measured("another", tmp_path) == {} == networks_measured("another", tmp_path)


def test_a_network_is_fused_where_its_own_step_was_faster(tmp_path, monkeypatch):
    """Layers that were faster one by one are not enough; nor is another network's step."""
    steps = [{"arch": arch, "inductor_over_auto": ratio} for arch, ratio in (("mobilenetv2", 1.3), ("resnet50", 0.4))]
    rows = {
        row.get("arch", KEY): {"status": "measured", "figures": row}
        for row in [*steps, {"layer": KEY, "library_seconds": 3.0, "kernel_seconds": 2.0}]
    }
    rows["step xception"] = {"status": "error", "figures": {}}
    put_table(tmp_path, "h200", rows)
    found = networks_measured("h200", tmp_path)
    assert found == {"mobilenetv2": 1.3, "resnet50": 0.4} and measured("h200", tmp_path) == {KEY: 1.5}
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr(dispatch, "networks_measured", lambda gpu: found)
    fused = [arch for arch in ("mobilenetv2", "resnet50", "xception", "") if fuses("auto", "cuda", arch)]
    assert fused == ["mobilenetv2"]


@pytest.mark.parametrize(("channels", "width", "path"), [(2**20, 2**7 - 2, "depthwise"), (2**20, 2**7, "aten")])
def test_a_line_too_long_for_32_bits_goes_to_the_library(monkeypatch, channels, width, path):
    """The depthwise kernels reach LINES lines from a 64-bit base; both tensors have more than 2^31 elements."""
    taken = []
    monkeypatch.setattr(conv, "conv_op", lambda *arguments: taken.append(arguments[-1]) or arguments[:1] * 3)
    x = torch.empty(32, channels, 2, width, dtype=torch.bfloat16, device="meta")
    assert x.numel() > 2**31
    depthwise_conv2d(x, torch.empty(channels, 1, 3, 3, device="meta"), 1, 1)
    assert taken == [path]


def test_a_cpu_fuses_only_when_told_to():
    assert not taken_on("cpu")
    assert not fuses("auto", "cpu") and fuses("on", "cpu") and not fuses("off", "cpu")
