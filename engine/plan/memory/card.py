"""What of a card no tensor can have: as its own report measured it (profiles/<gpu>/machine.json), else as assumed."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

from engine.plan.memory.cuda import MIB, Device
from kernels.dispatch import PROFILES, gpu_key

logger = logging.getLogger("hcr")

HOPPER = (9, 0)
HOPPER_CUBLAS = 64 * MIB
"""32 MiB for each thread's handle: the forward pass's and autograd's (aten/src/ATen/cuda/CUDABlas.cpp; measured on an
H200)."""


def device_of(name: str, capability: tuple[int, int] = (0, 0), profiles: Path = PROFILES) -> Device:
    """The Device of a GPU of this name, as NVML and torch call it."""
    assumed = replace(Device(), cublas=HOPPER_CUBLAS) if capability >= HOPPER else Device()
    path = profiles / gpu_key(name) / "machine.json"
    try:
        row = json.loads(path.read_text(encoding="utf-8"))["rows"]["footprint"]
        if row["status"] != "measured":
            return assumed
        figures = row["figures"]
        return replace(
            assumed,
            context=int(figures["context_bytes"]),
            libraries=int(figures["matmul_bytes"]) + int(figures["conv_bytes"]),
            cublas=int(figures["cublas_bytes"]) + int(figures["cublas_backward_bytes"]),
            measured=True,
        )
    except FileNotFoundError:
        return assumed
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.info("%s is left aside, memory is planned as on a card that was not measured (%r)", path, error)
        return assumed
