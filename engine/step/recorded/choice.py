"""Whether a run's steps are recorded as one CUDA graph: what cannot be recorded, and what was measured to gain by it.

Under torch.compile the compiled step is recorded the same way, its optimizer included, in place of
`mode="reduce-overhead"`: that records forward and backward apart, copies their inputs, leaves the update and the guards
to the host, and keeps pools of its own that no plan knows.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from engine.config import RunConfig, require
from engine.config.optimizers import OPTIMIZERS
from engine.step.recompute import Policy
from kernels.dispatch import PROFILES, gpu_key

WORTH = 1.02
"""Steps a second, recorded ÷ launched, from which on auto records."""


def recordable(policy: Policy) -> bool:
    """Whether a step of this policy can be recorded: recompute outside of a compiled graph puts the random generator's
    state back within the step, and an offload waits for the host."""
    return not policy.offload and (not policy.segments or bool(policy.partition))


def obstacle(
    config: RunConfig, device: str, precision: str, ranks: int, zero_stage: int, policy: Policy | None = None
) -> str | None:
    """Why the steps of `config` cannot be recorded, as the end of a sentence; None where they can."""
    if device != "cuda":
        return "needs a GPU"
    if zero_stage:
        return "does not go with DeepSpeed, whose engine decides on the host within a step"
    if ranks > 1:
        return "is for one GPU: several agree on the host, within each step, whether memory ran out on one of them"
    chosen = OPTIMIZERS[config.optim.optimizer]
    if not chosen.recordable:
        return f"does not go with {config.optim.optimizer}, whose update reads rate and count of steps on the host"
    if precision == "fp16" and not chosen.fused:
        return f"does not go with fp16 and {config.optim.optimizer}, whose overflows are looked for on the host"
    if config.distill.teacher is not None:
        return "does not go with --distill, whose teacher's outputs may come from the host"
    if config.log.profile:
        return "does not go with --profile, which shows the parts of a step: a recorded one has none"
    if policy is not None and not recordable(policy):
        return "does not go with recompute or offload, which put random states back or wait for the host in a step"
    return None


def choose_cuda_graph(
    asked: Literal["auto", "on", "off"],
    config: RunConfig,
    arch: str,
    gpu: str,
    device: str,
    precision: str,
    ranks: int,
    zero_stage: int,
    policy: Policy,
) -> bool:
    """auto records where this network's recorded step was measured to be faster on this GPU, and where it can.

    Raises ConfigError where it is asked for and cannot be.
    """
    if asked == "off":
        return False
    reason = obstacle(config, device, precision, ranks, zero_stage, policy)
    if asked == "on":
        require(reason is None, f"--cuda-graph on {reason}")
        return True
    return reason is None and measured_gain(gpu, arch) >= WORTH


def measured_gain(gpu: str, arch: str, folder: Path = PROFILES) -> float:
    """Images a second of the network's recorded step ÷ those of the launched one on that GPU; 0 where not measured.

    From the suite `graphs`: profiles/<gpu>/graphs.json. A file that cannot be read counts as none.
    """
    path = folder / gpu_key(gpu) / "graphs.json"
    try:
        row = json.loads(path.read_text(encoding="utf-8"))["rows"][arch]
        rates = row["figures"]["median"] if row["status"] == "measured" else {}
        return float(rates["HCR in one graph"]) / float(rates["HCR launched"])
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
        return 0.0
