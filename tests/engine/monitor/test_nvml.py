"""Finding and reading a GPU, against a stand-in for the module `pynvml`."""

import logging
import os
from types import SimpleNamespace

import pynvml
import pytest
import torch

from engine.monitor.nvml import GpuReader, GpuUnavailable, find_handle, open_gpu

UUIDS = ["GPU-aaaa1111-0000-0000-0000-000000000000", "GPU-bbbb2222-0000-0000-0000-000000000000"]
BUSES = ["00000000:1B:00.0", "00000001:3D:00.0"]
MIG = "MIG-cccc3333-0000-0000-0000-000000000000"


class FakeNvml:
    """Two cards. `errors` maps a function's name to the NVML code that it fails with; `calls` counts."""

    NVML_TEMPERATURE_GPU = 0
    NVML_CLOCK_SM = 1
    NVML_ERROR_NOT_FOUND = pynvml.NVML_ERROR_NOT_FOUND
    NVMLError = pynvml.NVMLError
    NVMLError_NotSupported = pynvml.NVMLError_NotSupported
    NVMLError_FunctionNotFound = pynvml.NVMLError_FunctionNotFound

    def __init__(self, **errors: int) -> None:
        self.errors = errors
        self.calls: dict[str, int] = {}
        self.users = 0
        self.millijoules = 5_000_000
        self.processes = [
            SimpleNamespace(pid=1, usedGpuMemory=7),
            SimpleNamespace(pid=os.getpid(), usedGpuMemory=3 << 30),
        ]
        self.answers = {
            "nvmlDeviceGetCount": lambda: 2,
            "nvmlDeviceGetHandleByIndex": self.by_index,
            "nvmlDeviceGetHandleByUUID": lambda uuid: uuid if uuid == MIG else self.by_index(position(UUIDS, uuid)),
            "nvmlDeviceGetHandleByPciBusId": lambda bus: self.by_index(position(BUSES, bus)),
            "nvmlDeviceGetUUID": lambda handle: UUIDS[handle],
            "nvmlDeviceGetName": lambda handle: f"Card {handle}",
            "nvmlSystemGetDriverVersion": lambda: "575.1",
            "nvmlDeviceGetEnforcedPowerLimit": lambda handle: 350_000,
            "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(total=12 << 30, used=4 << 30),
            "nvmlDeviceGetComputeRunningProcesses": lambda handle: self.processes,
            "nvmlDeviceGetUtilizationRates": lambda handle: SimpleNamespace(gpu=87, memory=40),
            "nvmlDeviceGetPowerUsage": lambda handle: 250_500,
            "nvmlDeviceGetTotalEnergyConsumption": lambda handle: self.millijoules,
            "nvmlDeviceGetTemperature": lambda handle, sensor: 61,
            "nvmlDeviceGetClockInfo": lambda handle, kind: 1740,
        }

    def by_index(self, number):
        if number not in (0, 1):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return number

    def nvmlInit(self):
        self.check("nvmlInit")
        self.users += 1

    def nvmlShutdown(self):
        self.users -= 1

    def check(self, name):
        self.calls[name] = self.calls.get(name, 0) + 1
        if name in self.errors:
            raise pynvml.NVMLError(self.errors[name])

    def __getattr__(self, name):
        if name not in self.answers:
            raise AttributeError(name)

        def call(*arguments):
            self.check(name)
            return self.answers[name](*arguments)

        return call


def position(names, name):
    return names.index(name) if name in names else -1


def properties(uuid="", bus=None):
    """What torch.cuda.get_device_properties would say; older torch had neither field."""
    found = SimpleNamespace(uuid=uuid) if uuid else SimpleNamespace()
    if bus is not None:
        found.pci_domain_id, found.pci_bus_id, found.pci_device_id = bus
    return found


@pytest.fixture
def nvml():
    return FakeNvml()


def test_a_reading_in_the_documented_units(nvml):
    reader = GpuReader(nvml, 0)
    nvml.millijoules += 1500
    assert reader.read() == {
        "gpu_used_bytes": 4 << 30,
        "gpu_process_bytes": 3 << 30,
        "gpu_utilization": 0.87,
        "gpu_power_watts": 250.5,
        "gpu_energy_joules": 1.5,
        "gpu_temperature_celsius": 61,
        "gpu_sm_clock_mhz": 1740,
    }
    assert reader.facts() == {
        "gpu_name": "Card 0",
        "gpu_uuid": UUIDS[0],
        "gpu_total_bytes": 12 << 30,
        "gpu_power_limit_watts": 350.0,
        "driver": "575.1",
    }


@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND])
@pytest.mark.parametrize(
    ("function", "field"),
    [
        ("nvmlDeviceGetComputeRunningProcesses", "gpu_process_bytes"),
        ("nvmlDeviceGetPowerUsage", "gpu_power_watts"),
        ("nvmlDeviceGetTotalEnergyConsumption", "gpu_energy_joules"),
        ("nvmlDeviceGetUtilizationRates", "gpu_utilization"),
        ("nvmlDeviceGetTemperature", "gpu_temperature_celsius"),
        ("nvmlDeviceGetClockInfo", "gpu_sm_clock_mhz"),
        ("nvmlDeviceGetMemoryInfo", "gpu_used_bytes"),
    ],
)
def test_what_a_card_does_not_have_is_null_and_asked_for_once(caplog, function, field, code):
    nvml = FakeNvml(**{function: code})
    reader = GpuReader(nvml, 0)
    rows = [reader.read() for _ in range(3)]
    assert [row[field] for row in rows] == [None] * 3
    assert all(value is not None for row in rows for name, value in row.items() if name != field)
    assert nvml.calls[function] == 1
    assert not caplog.records  # a card without a sensor is no cause for alarm


def test_an_error_in_the_middle_of_a_run_passes(nvml, caplog):
    reader = GpuReader(nvml, 0)
    before = reader.read()
    nvml.errors = {"nvmlDeviceGetPowerUsage": pynvml.NVML_ERROR_UNKNOWN}
    with caplog.at_level(logging.WARNING, logger="hcr"):
        during = [reader.read() for _ in range(3)]
    nvml.errors = {}
    assert [row["gpu_power_watts"] for row in during] == [None] * 3
    assert during[0]["gpu_utilization"] == 0.87
    assert reader.read() == before
    assert len(caplog.records) == 1
    assert "power" in caplog.text


def test_a_lost_card_is_all_null(nvml):
    reader = GpuReader(nvml, 0)
    nvml.errors = dict.fromkeys(nvml.answers, pynvml.NVML_ERROR_GPU_IS_LOST)
    assert set(reader.read().values()) == {None}


def test_memory_that_the_driver_does_not_tell_by_process(nvml):
    nvml.processes = [SimpleNamespace(pid=os.getpid(), usedGpuMemory=None)]
    assert GpuReader(nvml, 0).read()["gpu_process_bytes"] is None


def test_a_container_whose_pid_is_not_listed(nvml):
    nvml.processes = [SimpleNamespace(pid=54321, usedGpuMemory=3 << 30)]
    assert GpuReader(nvml, 0, pid=7).read()["gpu_process_bytes"] is None


def test_another_program_with_our_number_is_not_us(nvml):
    nvml.processes = [SimpleNamespace(pid=7, usedGpuMemory=100 << 20)]
    reader = GpuReader(nvml, 0, pid=7)
    assert reader.read(at_least_bytes=2 << 30)["gpu_process_bytes"] is None
    assert reader.read(at_least_bytes=50 << 20)["gpu_process_bytes"] == 100 << 20


@pytest.mark.parametrize(
    ("index", "facts", "visible", "expected"),
    [
        (0, properties(uuid=UUIDS[1]), "1", 1),
        (0, properties(uuid=UUIDS[1].removeprefix("GPU-")), "1,0", 1),
        (1, properties(uuid=UUIDS[0]), "1,0", 0),
        (0, properties(uuid="GPU-unknown", bus=(1, 0x3D, 0)), "0", 1),
        (0, properties(bus=(1, 0x3D, 0)), "", 1),
        (0, properties(bus=(0, 0x1B, 0)), "1", 0),
        (0, properties(), "1,0", 1),
        (1, properties(), "1, 0", 0),
        (0, properties(), UUIDS[1], 1),
        (0, properties(), "GPU-bbbb", 1),
        (1, properties(), "", 1),
        (0, properties(uuid=UUIDS[1]), MIG, MIG),
    ],
)
def test_a_torch_device_is_the_right_card(nvml, index, facts, visible, expected):
    assert find_handle(nvml, index, facts, {"CUDA_VISIBLE_DEVICES": visible}) == expected


def test_without_cuda_visible_devices_the_index_is_the_last_resort(nvml):
    assert find_handle(nvml, 1, properties(), {}) == 1


@pytest.mark.parametrize("entry", ["GPU-", "GPU-zzzz"])
def test_a_uuid_beginning_that_fits_two_cards_or_none(nvml, entry):
    with pytest.raises(pynvml.NVMLError):
        find_handle(nvml, 0, properties(), {"CUDA_VISIBLE_DEVICES": entry})


def test_no_driver_is_told_in_words():
    nvml = FakeNvml(nvmlInit=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
    with pytest.raises(GpuUnavailable, match="no NVIDIA driver"):
        open_gpu(torch.device("cuda", 0), nvml)


def test_open_and_close_leave_nvml_as_it_was(nvml, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties(uuid=UUIDS[index]))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    reader = open_gpu(torch.device("cuda"), nvml)
    assert reader.handle == 1
    reader.close()
    assert nvml.users == 0


def test_a_card_that_nvml_does_not_know(nvml, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties(uuid="GPU-zzzz"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(GpuUnavailable, match="cuda:5"):
        open_gpu(torch.device("cuda", 5), nvml)
    assert nvml.users == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_real_card():
    reader = open_gpu(torch.device("cuda", 0))
    held = torch.empty(64 << 20, dtype=torch.uint8, device="cuda")
    row = reader.read()
    facts = reader.facts()
    reader.close()
    assert facts["gpu_name"] == torch.cuda.get_device_name(0)
    assert held.numel() < row["gpu_used_bytes"] <= facts["gpu_total_bytes"]
    assert row["gpu_process_bytes"] is None or row["gpu_process_bytes"] >= held.numel()
    assert row["gpu_utilization"] is None or 0 <= row["gpu_utilization"] <= 1
