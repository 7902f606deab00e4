"""The sampling thread: what it writes, what it survives, what it costs."""

import logging
import threading
import time
from types import SimpleNamespace

import pynvml
import pytest
import torch

import engine.monitor.monitor
from engine.monitor.monitor import Monitor
from engine.runs.monitor_summary import summarise
from engine.runs.records import read_records
from tests.waiting import until

CUDA = torch.device("cuda", 0)
ALLOCATOR = {
    "allocated_bytes.all.current": 1 << 30,
    "reserved_bytes.all.current": 2 << 30,
    "allocated_bytes.all.peak": 5 << 30,
}


class FakeReader:
    """Stands in for GpuReader: a card that draws 200 W."""

    def __init__(self, energy=True):
        self.joules = 0.0
        self.energy = energy
        self.floor = None
        self.closed = False

    def facts(self):
        return {"gpu_name": "Card", "gpu_total_bytes": 12 << 30}

    def read(self, at_least_bytes=0):
        self.floor = at_least_bytes
        self.joules += 10
        return {
            "gpu_used_bytes": 4 << 30,
            "gpu_process_bytes": 3 << 30,
            "gpu_utilization": 0.5,
            "gpu_power_watts": 200.0,
            "gpu_energy_joules": self.joules if self.energy else None,
            "gpu_temperature_celsius": 60,
            "gpu_sm_clock_mhz": 1700,
        }

    def close(self):
        self.closed = True


@pytest.fixture
def card(monkeypatch):
    """A CUDA device with allocator and NVML, as far as the monitor can see."""
    reader = FakeReader()
    monkeypatch.setattr(engine.monitor.monitor, "open_gpu", lambda device, nvml: reader)
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda device: ALLOCATOR)
    return reader


def monitor_threads():
    return [thread for thread in threading.enumerate() if thread.name == "hcr-monitor"]


def test_the_host_without_a_gpu(tmp_path, caplog):
    path = tmp_path / "monitor.jsonl"
    with caplog.at_level(logging.INFO, logger="hcr"), Monitor(path, torch.device("cpu"), 0.01) as monitor:
        until(lambda: monitor.totals.samples >= 3)
    start, *samples = read_records(path)
    assert start["kind"] == "start"
    assert start["host_cores"] >= 1
    assert all(row["kind"] == "sample" and row["process_rss_bytes"] > 1 << 20 for row in samples)
    assert all(not name.startswith(("gpu_", "torch_")) for row in samples for name in row)
    assert [record.message for record in caplog.records] == ["monitor: no GPU in this run, sampling the host"]
    assert not monitor_threads()


def test_no_driver_is_said_once_and_torch_goes_on(tmp_path, caplog, monkeypatch):
    def no_library():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    nvml = SimpleNamespace(NVMLError=pynvml.NVMLError, nvmlInit=no_library)
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda device: ALLOCATOR)
    with caplog.at_level(logging.INFO, logger="hcr"), Monitor(tmp_path / "m.jsonl", CUDA, 0.01, nvml=nvml) as monitor:
        until(lambda: monitor.totals.samples >= 3)
    assert len(caplog.records) == 1
    assert caplog.records[0].levelno == logging.INFO
    assert "no NVIDIA driver" in caplog.text
    assert monitor.summary()["peak_memory_source"] == "torch_reserved_bytes"
    assert monitor.summary()["gpu_name"] is None


def test_every_field_of_a_gpu_run(tmp_path, card):
    path = tmp_path / "monitor.jsonl"
    with Monitor(path, CUDA, 0.01) as monitor:
        until(lambda: monitor.totals.samples >= 3)
    start, *samples = read_records(path)
    assert start["gpu_name"] == "Card"
    assert samples[-1]["torch_allocated_bytes"] == 1 << 30
    assert samples[-1]["torch_reserved_bytes"] == 2 << 30
    assert samples[-1]["torch_peak_bytes"] == 5 << 30
    assert card.floor == 2 << 30  # our entry in NVML's list cannot be below what torch holds
    assert card.closed
    summary = monitor.summary()
    assert summary == summarise(read_records(path))
    assert summary["peak_memory_bytes"] == 3 << 30
    assert summary["peak_memory_source"] == "gpu_process_bytes"
    assert summary["peak_torch_allocated_bytes"] == 5 << 30
    assert summary["mean_gpu_utilization"] == 0.5
    assert summary["energy_joules"] == 10 * len(samples)


def test_a_failing_sample_neither_ends_the_thread_nor_floods_the_log(tmp_path, card, caplog):
    with Monitor(tmp_path / "m.jsonl", CUDA, 0.01) as monitor:
        until(lambda: monitor.totals.samples >= 2)
        failures = []
        card.read, read = lambda at_least_bytes: failures.append(1) or 1 / 0, card.read
        until(lambda: len(failures) >= 3)
        card.read = read
        before = monitor.totals.samples
        until(lambda: monitor.totals.samples > before)
    assert caplog.text.count("ZeroDivisionError") == 1


def test_a_full_disk_does_not_stop_the_training(tmp_path, caplog):
    with Monitor(tmp_path / "m.jsonl", None, 0.01) as monitor:
        until(lambda: monitor.totals.samples >= 1)

        def full(row):
            raise OSError(28, "No space left on device")

        monitor._writer.write = full
        before = monitor.totals.samples
        until(lambda: monitor.totals.samples >= before + 3)
    assert caplog.text.count("No space left") == 1


def test_an_exception_in_the_training_stops_the_monitor(tmp_path):
    with pytest.raises(KeyError), Monitor(tmp_path / "m.jsonl", None, 60.0):
        raise KeyError("training")
    assert not monitor_threads()
    assert len(read_records(tmp_path / "m.jsonl")) >= 2  # the start and a last sample, far within the interval


def test_samples_keep_the_interval(tmp_path, monkeypatch):
    """By a clock of the test's own; what a sample takes is no part of it, and one that is late is not made up for."""
    now, taken, takes = [0.0], [], iter([0.25, 0.25, 2.5, 0.25, 0.25, 0.0, 0.0])

    def take():
        taken.append(now[0])
        now[0] += next(takes)

    def wait(seconds):
        now[0] += max(0.0, seconds)
        return len(taken) == 6

    monkeypatch.setattr(engine.monitor.monitor, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monitor = Monitor(tmp_path / "m.jsonl", None, 1.0)
    monkeypatch.setattr(monitor, "_take", take)
    monkeypatch.setattr(monitor, "_stop", SimpleNamespace(wait=wait))
    monitor._loop()
    assert taken == [0.0, 1.0, 2.0, 4.5, 5.5, 6.5, 7.5]


def test_cpu_percent_is_this_process(tmp_path):
    path = tmp_path / "m.jsonl"
    began, used = time.monotonic(), time.process_time()
    with Monitor(path, None, 0.15) as monitor:
        until(lambda: sum(range(3_000_000)) and monitor.totals.samples >= 4)
    share = (time.process_time() - used) / (time.monotonic() - began)  # of a core that others may want as well
    first, *others = [row["process_cpu_percent"] for row in read_records(path)[1:]]
    assert first is None
    assert max(value for value in others if value is not None) > 100 * share / 2


def test_the_cost_is_under_half_a_percent(tmp_path):
    monitor = Monitor(tmp_path / "m.jsonl", None, 1.0)
    monitor.start()
    costs = []
    for _ in range(30):
        began = time.thread_time()
        monitor._record(monitor.sample())
        costs.append(time.thread_time() - began)
    monitor.stop()
    assert sorted(costs)[len(costs) // 2] / monitor.interval < 0.005


def test_a_resumed_run_goes_on_in_the_same_file(tmp_path, card):
    path = tmp_path / "monitor.jsonl"
    for _ in range(2):
        with Monitor(path, CUDA, 5.0):
            pass
    kinds = [row["kind"] for row in read_records(path)]
    assert kinds.count("start") == 2
    assert kinds[0] == "start"


def test_an_interval_must_be_positive(tmp_path):
    with pytest.raises(ValueError, match="above 0 seconds, not 0"):
        Monitor(tmp_path / "m.jsonl", None, 0)


def test_energy_without_a_counter_is_power_over_time_and_skips_the_pause():
    def session(begin):
        return [{"kind": "start", "time": begin, "interval": 1.0}] + [
            {"kind": "sample", "time": begin + second, "gpu_power_watts": 100.0 * second} for second in range(3)
        ]

    summary = summarise(session(0.0) + session(10_000.0))
    assert summary["energy_joules"] == pytest.approx(2 * (50 + 150))
    assert summary["seconds"] == pytest.approx(4.0)
    assert summary["samples"] == 6


def test_energy_counters_of_two_sessions_add_up():
    rows = []
    for joules in (700.0, 300.0):
        rows.append({"kind": "start", "time": 0.0, "interval": 1.0})
        rows += [{"kind": "sample", "time": float(n), "gpu_energy_joules": joules * n / 2} for n in range(3)]
    assert summarise(rows)["energy_joules"] == 1000.0


def test_nothing_measured_is_none_and_not_zero():
    summary = summarise([])
    assert summary["samples"] == 0
    assert summary["energy_joules"] is None
    assert summary["peak_memory_bytes"] is None
    assert summary["cost"] is None


def test_a_hole_in_a_column_is_left_out_of_its_mean():
    rows = [{"kind": "sample", "time": float(n), "gpu_utilization": use} for n, use in enumerate([0.5, None, 1.0])]
    assert summarise(rows)["mean_gpu_utilization"] == 0.75


@pytest.mark.gpu
@pytest.mark.real_gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_real_gpu_at_under_half_a_percent(tmp_path):
    held = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    monitor = Monitor(tmp_path / "m.jsonl", CUDA, 1.0).start()
    costs = []
    for _ in range(30):
        costs.append(monitor.sample()["sample_seconds"])  # waiting for the driver takes nothing from the training
    monitor.stop()
    assert monitor.summary()["gpu_name"] == torch.cuda.get_device_name(0)
    assert monitor.summary()["peak_torch_allocated_bytes"] >= held.numel()
    assert sorted(costs)[len(costs) // 2] < 0.005
