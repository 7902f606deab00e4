"""Whether a run that is resumed is still the same one."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from engine.config import ConfigError, RunConfig, flatten, from_yaml

FREE_TO_CHANGE = {
    *("config", "resume", "optim.epochs", "model.compile", "model.fused"),
    *("data.root", "data.workers", "data.prefetch", "parallel.threads"),
    *("memory.gpu_memory", "memory.recompute", "memory.offload", "parallel.micro_batch_size"),
}
"""Fields besides the `log` group that a resumed run may change without becoming another run. Micro-batches are among
them, as a run that is short of memory changes them by itself."""


def refuse_other_run(config: RunConfig, folder: Path) -> None:
    """Raise ConfigError where flags would turn the run in `folder` into another one."""
    before = dict(flatten(asdict(from_yaml(folder / "config.yaml"))))
    changed = [
        f"{name} {before[name]} -> {value}"
        for name, value in flatten(asdict(config))
        if before[name] != value and name not in FREE_TO_CHANGE and not name.startswith("log.")
    ]
    if changed:
        raise ConfigError(
            f"--resume {folder}: these flags would make it another run: {', '.join(changed)}; "
            "leave them out, or start a new run"
        )
