"""A DeepSpeed configuration of the person's own: what it says of the run has to be what the run is."""

from __future__ import annotations

from typing import Any

from engine.config import ConfigError, RunConfig, require
from engine.step.ranks.shares import largest_share

PRECISIONS = ("fp16", "bf16", "torch_autocast", "amp")
"""Sections that would choose a precision."""


def refuse_contradictions(deepspeed: dict[str, Any], config: RunConfig, ranks: int) -> None:
    """Raise ConfigError for fields that would train something else than `config` on `ranks` processes.

    What says "auto", or the same, is taken. Where ZeRO cuts, its buckets and its offload of the optimizer are its own,
    if DeepSpeed knows their names.
    """
    sections = ("zero_optimization", "data_types", *PRECISIONS)
    for name in sections:
        given = deepspeed.get(name, {})
        require(isinstance(given, dict), f"DeepSpeed's configuration says {name}: {given!r}; it is a section in braces")
    optim = config.optim
    share = largest_share(optim.batch_size, ranks)
    micro = config.parallel.micro_batch_size or share
    of_the_run = {
        "train_batch_size": (optim.batch_size, "--batch-size"),
        "train_micro_batch_size_per_gpu": (micro, "--parallel.micro-batch-size"),
        "gradient_accumulation_steps": (-(-share // micro), "--parallel.micro-batch-size"),
        "gradient_clipping": (optim.clip_norm, "--optim.clip-norm"),
    }
    for name, (value, flag) in of_the_run.items():
        given = deepspeed.get(name, "auto")
        require(
            given == "auto" or given == value,
            f"DeepSpeed's configuration says {name}: {given}, and the run {value}; {flag} decides: leave it out there, "
            'or say "auto"',
        )
    sent = "bf16" if config.parallel.gradient_compression == "bf16" else "fp32"
    given = deepspeed.get("communication_data_type", sent)
    require(
        given == sent,
        f"DeepSpeed's configuration says communication_data_type: {given}, and the run sends gradients in {sent}; "
        "--parallel.gradient-compression decides: leave it out there",
    )
    for name, flag in (("optimizer", "--optimizer"), ("scheduler", "--optim.schedule")):
        require(name not in deepspeed, f"DeepSpeed's configuration has a section {name}; {flag} decides: leave it out")
    summed = deepspeed.get("data_types", {}).get("grad_accum_dtype", "auto")
    require(
        summed in ("fp32", "auto", None),
        f"DeepSpeed's configuration says grad_accum_dtype: {summed}, and the run adds gradients up in fp32: leave "
        "it out",
    )
    for name in PRECISIONS:
        asked = deepspeed.get(name, {}).get("enabled", False)
        require(
            asked in (False, "auto"),
            f"DeepSpeed's configuration turns {name} on; --precision decides, with BatchNorm in fp32: leave it out",
        )
    zero = deepspeed.get("zero_optimization", {})
    stage = zero.get("stage", 0)
    require(stage in (0, 1, 2, 3), f"DeepSpeed's configuration says ZeRO stage {stage!r}; there are 0, 1, 2 and 3")
    require(
        "offload_param" not in zero,
        "DeepSpeed's configuration has offload_param, which is not planned for; --memory.offload and "
        "configs/deepspeed/zero2_offload.json are",
    )
    _refuse_unknown(zero)


def _refuse_unknown(zero: dict[str, Any]) -> None:
    """Raise ConfigError for what DeepSpeed's own description of the section has not."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from pydantic import ValidationError

    try:
        DeepSpeedZeroConfig(**zero)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise ConfigError(
            f"DeepSpeed's configuration says {field}: {first['input']!r} in zero_optimization; {first['msg']}"
        ) from None
