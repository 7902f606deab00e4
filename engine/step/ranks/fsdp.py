"""torch's fully_shard (FSDP2) by accelerate: parameters, gradients and optimizer states in equal parts on all ranks.

Parameters stay fp32 and torch's autocast chooses per operator, as under DeepSpeed: BatchNorm's statistics and weights
are fp32, gradients are summed in fp32 (FSDP's own mixed precision would cast BatchNorm's, too).
"""

from __future__ import annotations

import logging
import os
from collections.abc import MutableMapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from engine.config import OptimConfig, RunConfig, require
from engine.config.optimizers import OPTIMIZERS

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger("hcr")


def fsdp_asked(environment: MutableMapping[str, str] = os.environ) -> bool:
    """Whether the launcher asks for it. Raises ConfigError for its first version, and for parameters on the host."""
    if environment.get("ACCELERATE_USE_FSDP", "false").lower() not in ("true", "1"):
        return False
    require(
        environment.get("FSDP_VERSION", "1") == "2",
        "accelerate's configuration asks for the first FSDP, which torch has given up; set fsdp_version: 2, or launch "
        "with --config_file configs/accelerate/fsdp2.yaml",
    )
    require(
        environment.get("FSDP_OFFLOAD_PARAMS", "false").lower() not in ("true", "1"),
        "accelerate's configuration asks for parameters in host memory (fsdp_offload_params), which is not planned for "
        "here; launch with configs/accelerate/deepspeed_zero2_offload.yaml, or leave it out",
    )
    if environment.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() in ("false", "0"):
        logger.info("note: accelerate's configuration keeps parameters between the passes; here they are let go")
    return True


def refuse_fsdp(config: RunConfig) -> None:
    """Raise ConfigError for what does not run under it."""
    optim: OptimConfig = config.optim
    under = "does not run under FSDP2, where no rank has whole parameters"
    chosen = OPTIMIZERS[optim.optimizer]
    require(
        not chosen.whole and not chosen.schedule_free,
        f"--optimizer {optim.optimizer} {under}: use adamw, sgd or another one that looks at each number alone, or DDP",
    )
    require(not optim.sam, f"--optim.sam {under}; launch with configs/accelerate/ddp.yaml")
    require(not optim.ema, f"--optim.ema {under}; launch with DDP, or ZeRO-1 or 2")
    require(
        config.precision.precision != "fp16",
        "--precision fp16 does not run under FSDP2, where its loss scale would have to be agreed on: use bf16 or fp32",
    )
    require(config.model.compile != "on", "--compile with FSDP2 is not supported; launch with DDP or ZeRO-2")


def fsdp_plugin(halved: bool = False):
    """accelerate's description of it; `shard_units` completes it.

    halved  gradients are reduced in bf16
    """
    from accelerate.utils import FullyShardedDataParallelPlugin
    from torch.distributed.fsdp import MixedPrecisionPolicy

    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        reshard_after_forward=True,
        mixed_precision_policy=MixedPrecisionPolicy(reduce_dtype=torch.bfloat16 if halved else None),
        auto_wrap_policy="TRANSFORMER_BASED_WRAP",
        cpu_ram_efficient_loading=False,
        state_dict_type="SHARDED_STATE_DICT",
        cpu_offload=False,
    )


def on_a_cpu(accelerator: Accelerator, plugin) -> None:
    """Let accelerate take its FSDP path over gloo, too: it looks for it on accelerators only (1.15, state.py)."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    for state in (PartialState(), accelerator.state):  # the second takes over the first's whenever it is made again
        state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = plugin


def shard_units(model: nn.Module, accelerator: Accelerator) -> None:
    """Gather and let go the parameters unit by unit of recompute, and compute under autocast.

    accelerate casts through FSDP's own policy where it knows one, and leaves its autocast out.
    """
    from accelerate.utils import convert_outputs_to_fp32
    from accelerate.utils.modeling import get_mixed_precision_context_manager

    kinds = sorted({type(unit).__name__ for unit in model.blocks()})  # type: ignore[attr-defined,operator]
    accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = kinds
    if accelerator.native_amp:
        autocast = get_mixed_precision_context_manager(True, accelerator.autocast_handler)
        model.forward = convert_outputs_to_fp32(autocast(model.forward))  # type: ignore[method-assign]
