"""What NVIDIA's management library says about one GPU, field by field.

NVML counts what the driver sees: memory of every process on the card with its CUDA context and libraries, which
torch's allocator does not know. It numbers cards in PCI order and knows nothing of CUDA_VISIBLE_DEVICES, so a torch
device is found by its UUID or PCI bus id. Source: NVML API reference, docs.nvidia.com/deploy/nvml-api.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

logger = logging.getLogger("hcr")


class GpuUnavailable(RuntimeError):
    """NVML cannot be asked about this device; the message says why in words for the terminal."""


class GpuReader:
    """Reads one GPU. A field that the card or driver does not have is None, and never an exception.

    nvml    the module `pynvml`, or one with its functions and exceptions
    handle  NVML's handle of the device
    pid     process whose memory `gpu_process_bytes` is
    """

    def __init__(self, nvml: Any, handle: Any, pid: int | None = None) -> None:
        self.nvml = nvml
        self.handle = handle
        self.pid = os.getpid() if pid is None else pid
        self._unsupported: set[str] = set()
        self._reported: set[tuple[str, str]] = set()
        self._energy_start = self._ask("energy", lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle))

    def facts(self) -> dict[str, Any]:
        """What does not change: gpu_name, gpu_uuid, gpu_total_bytes, gpu_power_limit_watts, driver."""
        nvml, handle = self.nvml, self.handle
        return {
            "gpu_name": self._ask("name", lambda: nvml.nvmlDeviceGetName(handle)),
            "gpu_uuid": self._ask("uuid", lambda: nvml.nvmlDeviceGetUUID(handle)),
            "gpu_total_bytes": self._ask("memory", lambda: int(nvml.nvmlDeviceGetMemoryInfo(handle).total)),
            "gpu_power_limit_watts": self._ask("limit", lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1e3),
            "driver": self._ask("driver", lambda: nvml.nvmlSystemGetDriverVersion()),
        }

    def read(self, at_least_bytes: int = 0) -> dict[str, float | int | None]:
        """One reading.

        gpu_used_bytes            memory taken on the card by everybody
        gpu_process_bytes         memory of process `pid`; None where NVML does not say. In a container NVML lists the
                                  host's process ids, so another program may carry our number: an entry below
                                  `at_least_bytes` (what torch holds for certain) is not us
        gpu_utilization           share of the last sampling period in which a kernel ran, 0..1
        gpu_power_watts           board power
        gpu_energy_joules         since this reader was made
        gpu_temperature_celsius   of the chip
        gpu_sm_clock_mhz          of the multiprocessors
        """
        nvml, handle = self.nvml, self.handle
        energy = self._ask("energy", lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle))
        started = self._energy_start
        return {
            "gpu_used_bytes": self._ask("memory", lambda: int(nvml.nvmlDeviceGetMemoryInfo(handle).used)),
            "gpu_process_bytes": self._ask("processes", lambda: self._process_bytes(at_least_bytes)),
            "gpu_utilization": self._ask("use", lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100),
            "gpu_power_watts": self._ask("power", lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1e3),
            "gpu_energy_joules": None if energy is None or started is None else (energy - started) / 1e3,
            "gpu_temperature_celsius": self._ask(
                "temperature", lambda: int(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
            ),
            "gpu_sm_clock_mhz": self._ask(
                "clock", lambda: int(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM))
            ),
        }

    def close(self) -> None:
        """Let go of NVML (it counts its users)."""
        self._ask("shutdown", lambda: self.nvml.nvmlShutdown())

    def _process_bytes(self, at_least_bytes: int) -> int | None:
        for process in self.nvml.nvmlDeviceGetComputeRunningProcesses(self.handle):
            if process.pid == self.pid:
                used = process.usedGpuMemory
                return None if used is None or used < at_least_bytes else int(used)
        return None

    def _ask(self, field: str, call: Callable[[], Any]) -> Any:
        if field in self._unsupported:
            return None
        try:
            return call()
        except self.nvml.NVMLError as error:
            permanent = (self.nvml.NVMLError_NotSupported, self.nvml.NVMLError_FunctionNotFound)
            if isinstance(error, permanent):
                self._unsupported.add(field)  # the answer will not change: do not pay for asking again
            elif (field, str(error)) not in self._reported:
                self._reported.add((field, str(error)))
                logger.warning("NVML: %s cannot be read now (%s); its column is empty", field, error)
            return None


def open_gpu(device: Any, nvml: Any = None) -> GpuReader:
    """The reader of a torch CUDA device (index None: the current one).

    Raises GpuUnavailable where the NVML library, the driver or the card is missing.
    """
    if nvml is None:
        try:
            import pynvml
        except ImportError:
            raise GpuUnavailable("the package nvidia-ml-py is not installed") from None
        nvml = pynvml
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        raise GpuUnavailable(f"no NVIDIA driver answers ({error})") from None
    try:
        import torch

        index = torch.cuda.current_device() if device.index is None else device.index
        return GpuReader(nvml, find_handle(nvml, index, torch.cuda.get_device_properties(index)))
    except nvml.NVMLError as error:
        nvml.nvmlShutdown()
        raise GpuUnavailable(f"NVML does not know {device} ({error})") from None


def find_handle(nvml: Any, index: int, properties: Any, environment: Mapping[str, str] = os.environ) -> Any:
    """NVML's handle of torch's CUDA device `index`, whatever CUDA_VISIBLE_DEVICES hides or reorders.

    Tried in turn: a MIG slice named in CUDA_VISIBLE_DEVICES; the UUID, then the PCI bus id in torch's `properties`
    (torch.cuda.get_device_properties); the entry of CUDA_VISIBLE_DEVICES (a UUID or its beginning, or a number in PCI
    order); the index itself. Raises NVMLError where none is known to NVML.
    """
    visible = [entry.strip() for entry in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if entry.strip()]
    entry = visible[index] if index < len(visible) else ""
    attempts: list[Callable[[], Any]] = []
    if entry.startswith("MIG-"):
        attempts.append(lambda: nvml.nvmlDeviceGetHandleByUUID(entry))
    uuid = str(getattr(properties, "uuid", "") or "")
    if uuid:
        full = uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
        attempts.append(lambda: nvml.nvmlDeviceGetHandleByUUID(full))
    if hasattr(properties, "pci_bus_id"):
        address = f"{properties.pci_domain_id:08X}:{properties.pci_bus_id:02X}:{properties.pci_device_id:02X}.0"
        attempts.append(lambda: nvml.nvmlDeviceGetHandleByPciBusId(address))
    if entry.startswith("GPU-"):
        attempts.append(lambda: _by_uuid_prefix(nvml, entry))
    else:
        number = int(entry) if entry.isdecimal() else index
        attempts.append(lambda: nvml.nvmlDeviceGetHandleByIndex(number))
    for attempt in attempts[:-1]:
        try:
            return attempt()
        except nvml.NVMLError as error:
            logger.debug("NVML: %s", error)
    return attempts[-1]()


def _by_uuid_prefix(nvml: Any, prefix: str) -> Any:
    handles = [nvml.nvmlDeviceGetHandleByIndex(number) for number in range(nvml.nvmlDeviceGetCount())]
    matching = [handle for handle in handles if nvml.nvmlDeviceGetUUID(handle).startswith(prefix)]
    if len(matching) != 1:
        raise nvml.NVMLError(nvml.NVML_ERROR_NOT_FOUND)
    return matching[0]
