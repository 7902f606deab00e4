"""Where a step goes: the right steps are recorded, and the lines add up."""

import json
import logging
import re
from types import SimpleNamespace

import pytest
import torch

from engine.monitor.step_profile import PARTS, RECORDED, SKIPPED, StepProfile, Unprofiled, busy_and_longest_gap, summary


@pytest.fixture
def told(caplog):
    caplog.set_level(logging.INFO, logger="hcr")
    return caplog


def take_steps(profile: Unprofiled, count: int) -> None:
    """Steps with a forward pass that is twenty times the backward pass: a busy machine does not turn that round."""
    left = torch.randn(300, 300)
    for _ in range(count):
        with profile.span("data wait"):
            pass
        with profile.span("forward"):
            for _ in range(20):
                left @ left
        with profile.span("backward"):
            left @ left
        with profile.span("optimizer"):
            left.sum()
        profile.step_done(4)


def test_ten_lines_say_where_the_step_goes(tmp_path, told):
    profile = StepProfile(tmp_path / "profile", torch.device("cpu"))
    take_steps(profile, SKIPPED + RECORDED + 3)
    profile.close()
    text = (tmp_path / "profile" / "summary.txt").read_text()
    assert len(text.strip().splitlines()) == 10 and text.strip() in told.text
    assert text.startswith(f"{RECORDED} steps of ")
    milliseconds = {part: float(re.search(rf"^{part} +([\d.]+)", text, re.MULTILINE)[1]) for part in PARTS}
    assert milliseconds["forward"] > 1.5 * milliseconds["backward"] > 0
    whole = float(re.search(r"steps of ([\d.]+)", text)[1])
    between = float(re.search(r"^between +([\d.]+)", text, re.MULTILINE)[1])
    assert sum(milliseconds.values()) + between == pytest.approx(whole, abs=0.05)
    assert "aten::mm" in text.splitlines()[-1]
    trace = json.loads((tmp_path / "profile" / "trace.json").read_text())["traceEvents"]
    assert sum(event.get("name") == "hcr: forward" for event in trace) == RECORDED


def test_a_short_run_has_what_it_had(tmp_path, told):
    profile = StepProfile(tmp_path, torch.device("cpu"))
    take_steps(profile, SKIPPED + 2)
    profile.close()
    assert (tmp_path / "summary.txt").read_text().startswith("2 steps of ")
    none = StepProfile(tmp_path / "none", torch.device("cpu"))
    take_steps(none, 2)
    none.close()
    assert "nothing was recorded" in told.text and not (tmp_path / "none").exists()


def test_a_run_that_is_not_recorded_leaves_nothing():
    profile = Unprofiled()
    take_steps(profile, 20)
    profile.close()


def test_gaps_between_kernels():
    assert busy_and_longest_gap([(0, 2), (1, 3), (5, 6), (5.5, 5.7), (10, 11)]) == (5, 4)
    assert busy_and_longest_gap([(0, 2)]) == (2, 0)


def test_the_trainer_marks_every_part(make_trainer, tmp_path):
    trainer = make_trainer(images=128)
    trainer.profile = StepProfile(tmp_path / "profile", torch.device("cpu"))
    trainer.fit()
    trainer.profile.close()
    text = (tmp_path / "profile" / "summary.txt").read_text()
    for part in ("forward", "backward", "optimizer"):
        assert float(re.search(rf"^{part} +([\d.]+)", text, re.MULTILINE)[1]) > 0, text


class Event:
    """What the summary reads of torch's events."""

    def __init__(self, name: str, device: str, start: float, end: float, annotation: bool = False) -> None:
        self.name, self.device_type = name, f"DeviceType.{device}"
        self.time_range = SimpleNamespace(start=start, end=end)
        self.self_cpu_time_total = end - start
        self.is_user_annotation = annotation


def test_a_gpu_that_idles_is_told():
    """Two steps of 10 ms: the kernels run for 6 ms of the first and 4 of the second, and once the host waits."""
    events = [Event("hcr: forward", "CPU", 0, 8000, True), Event("hcr: forward", "CUDA", 0, 8000, True)]
    events += [Event("Optimizer.step#SGD.step", "CUDA", 7000, 12000, True)]
    events += [Event("conv_kernel", "CUDA", 1000, 7000), Event("triton_poi_fused_relu_0", "CUDA", 12000, 16000)]
    events += [Event("cudaStreamSynchronize", "CPU", 18000, 20000), Event("aten::convolution", "CPU", 0, 5000)]
    text = summary(events, seconds=0.020, steps=2, images=8)
    assert "2 steps of 10.00 ms, 400 images/s, the host waits 0.5 times a step" in text
    assert re.search(r"^GPU computes +5\.00 +50\.0 %", text, re.MULTILINE)
    assert re.search(r"^GPU waits for the host +5\.00 +50\.0 %; longest gap 5\.00 ms", text, re.MULTILINE)
    assert re.search(r"^forward +4\.00 +40\.0 %", text, re.MULTILINE)
    assert len(text.splitlines()) == 10
    assert text.splitlines()[-1] == "costliest: conv_kernel 3.00 ms, triton_poi_fused_relu_0 2.00 ms"


def test_torch_marks_its_annotations():
    """What the summary goes by: the optimizer's range is one, an operator is not."""
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    parameter.sum().backward()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        optimizer.step()
    marked = {event.name: event.is_user_annotation for event in profiler.events()}
    assert marked["Optimizer.step#SGD.step"] and not any(
        value for name, value in marked.items() if name.startswith("aten::")
    )
