"""How much memory cuDNN's convolutions may take beside their tensors: an environment variable of a whole process."""

from __future__ import annotations

import logging
import os
from collections.abc import MutableMapping

VARIABLE = "CUDNN_CONV_WSCAP_DBG"
"""MiB that a convolution's workspace may have (NVIDIA cuDNN, error reporting and API logging)."""
OURS = "HCR_CONV_WSCAP"
"""What was set here, so that a run that starts again in its place knows it from a person's wish."""

logger = logging.getLogger("hcr")
_caps: list[str] = []
"""Those that were set in this process."""


def cap_workspaces(cap: int, environment: MutableMapping[str, str] = os.environ) -> None:
    """Hold a convolution's workspace to `cap` bytes, in whole MiB; 0 is no cap. What the person set stays, and is said.

    cuDNN is free to read it once, so another cap within one process may come too late: that is said as well, and
    what compares budgets takes a process for each (engine.bench.suites.memory_suite).
    """
    if not cap:
        return
    wanted, there, ours = str(cap >> 20), environment.get(VARIABLE), environment.get(OURS)
    if there not in (None, "", ours):
        if there != wanted:
            logger.info("note: %s=%s is kept; the plan counts with %s MiB", VARIABLE, there, wanted)
        return
    if _caps and _caps[-1] != wanted:
        logger.info("note: %s is now %s MiB, which cuDNN may not see in this process any more", VARIABLE, wanted)
    environment[VARIABLE] = environment[OURS] = wanted
    _caps.append(wanted)
