"""From a plain model to one that trains as the plan says: layout, recompute, compile, then DDP or DeepSpeed."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch._functorch.config
from accelerate import Accelerator
from accelerate.utils import DistributedType, GradientAccumulationPlugin, InitProcessGroupKwargs
from torch import Tensor, nn

from engine.config import ConfigError, OptimConfig, RankError, require
from engine.step.ddp import DdpOptions, ignore_strides_of_one
from engine.step.device_memory.workspaces import cap_workspaces
from engine.step.launcher import complete_local_rank, overrule, refuse_odd_ranks, say_unused
from engine.step.plan import Plan, use_cuda
from engine.step.ranks.fsdp import fsdp_asked, fsdp_plugin, on_a_cpu, shard_units
from engine.step.recompute import apply_policy
from engine.step.sync_norm import synchronise_norms
from kernels.over_ranks import group_name

GRACE = 15.0
"""Seconds by which an exchange gives up later than a rank without a sign of life is named."""
SPARE_GRAPHS = 4
"""Beside the training graph of each image size: evaluations with and without a moving average, a tail."""
AUTOCAST_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Launch:
    """What the launcher (accelerate, torchrun or none) set up for this process."""

    rank: int
    local_rank: int
    ranks: int
    deepspeed: dict | None
    """DeepSpeed's configuration, where the launcher asked for it."""
    timeout: float = 600.0
    """Seconds that ranks wait for each other."""
    fsdp: bool = False
    """Whether the launcher asked for torch's FSDP2."""

    @property
    def exchange_timeout(self) -> timedelta:
        """Of the process groups: a little later, as engine.step.ranks.peers knows better what to say."""
        return timedelta(seconds=self.timeout + GRACE)

    @property
    def zero_stage(self) -> int:
        """As memory is planned: FSDP2 keeps what ZeRO-3 does."""
        return 3 if self.fsdp else (self.deepspeed or {}).get("zero_optimization", {}).get("stage", 0)

    @property
    def offload_optimizer(self) -> bool:
        """Whether the optimizer's states are in host memory."""
        return "offload_optimizer" in (self.deepspeed or {}).get("zero_optimization", {})

    @classmethod
    def detect(cls, timeout: float = 600.0) -> Launch:
        """Read the launcher's environment variables.

        timeout  seconds that ranks wait for each other

        Raises ConfigError for a DeepSpeed launch without its JSON, or one that is none, and for ranks that could not
        find each other.
        """
        refuse_odd_ranks()
        complete_local_rank(torch.cuda.device_count() if use_cuda() else 0)
        deepspeed = None
        if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
            import json

            path = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "")
            if not path or not Path(path).is_file():
                raise ConfigError(
                    f"DeepSpeed was asked for without its configuration (found {path or 'none'}); launch with "
                    "--config_file configs/accelerate/deepspeed_zero2.yaml from the project's folder"
                )
            try:
                deepspeed = json.loads(Path(path).read_text(encoding="utf-8"))
                require(isinstance(deepspeed, dict), f"DeepSpeed's configuration {path} is no object in braces")
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise ConfigError(f"DeepSpeed's configuration {path} is no JSON: {error}") from None
        environment = os.environ
        return cls(
            rank=int(environment.get("RANK", 0)),
            local_rank=int(environment.get("LOCAL_RANK", 0)),
            ranks=int(environment.get("WORLD_SIZE", 1)),
            deepspeed=deepspeed,
            timeout=timeout,
            fsdp=fsdp_asked(),
        )


def deepspeed_configuration(launch: Launch, plan: Plan, optim: OptimConfig) -> dict:
    """The launcher's DeepSpeed JSON with the plan's batch split and precision filled in.

    Parameters stay fp32 and torch's autocast chooses per operator: DeepSpeed's own bf16 mode casts BatchNorm as well
    (DeepSpeed issue 3979). Gradients are summed in fp32, as DDP sums them, or in bf16 where that is asked for: under
    autocast for the modules in `lower_precision_safe_modules`, else by `communication_data_type`. Raises ConfigError
    for fp16 with more than one parameter group: ZeRO lets the loss scaler step and update after each (0.19,
    `_optimizer_step`); and for fp16 with gradients in bf16, as it sends them in the compute dtype or in fp32.
    """
    configuration = dict(launch.deepspeed or {})
    configuration.pop("train_batch_size", None)  # it would have to be micro-batch × accumulation × ranks, to the image
    configuration |= {
        "train_micro_batch_size_per_gpu": plan.micro_batch_size,
        "gradient_accumulation_steps": plan.accumulation,
        "gradient_clipping": optim.clip_norm,
        "zero_allow_untested_optimizer": True,
    }
    if plan.precision != "fp32":
        dtype = str(AUTOCAST_DTYPES[plan.precision]).removeprefix("torch.")
        sent = ["torch.nn.Conv2d", "torch.nn.Linear"] if plan.gradient_compression == "bf16" else []
        configuration["torch_autocast"] = {"enabled": True, "dtype": dtype, "lower_precision_safe_modules": sent}
    configuration["communication_data_type"] = "bf16" if plan.gradient_compression == "bf16" else "fp32"
    require(
        plan.precision != "fp16" or plan.gradient_compression == "none",
        "--parallel.gradient-compression bf16 does not go with --precision fp16 under DeepSpeed, which sends gradients "
        "in the compute dtype or in fp32: use --precision bf16, or DDP",
    )
    require(
        plan.precision != "fp16" or optim.weight_decay == 0,
        "--precision fp16 with --optim.weight-decay does not run under DeepSpeed, whose loss scaler takes one group of "
        "parameters: use --precision fp32 or bf16, or no weight decay",
    )
    return configuration


def build_accelerator(plan: Plan, launch: Launch, optim: OptimConfig) -> Accelerator:
    """accelerate's front to the device, the process group, accumulation and autocast, set up as the plan says."""
    overrule(plan.precision)
    cpu = plan.device == "cpu"
    backend = {"backend": "gloo"} if cpu and launch.ranks > 1 else {}
    handlers: list = [InitProcessGroupKwargs(timeout=launch.exchange_timeout, **backend)]
    accumulation = GradientAccumulationPlugin(num_steps=plan.accumulation, sync_with_dataloader=False)
    if launch.deepspeed is not None:
        from accelerate.utils import DeepSpeedPlugin

        if cpu:
            import deepspeed.ops

            # gloo does the same work; this extension would be compiled at its first use, for half a minute
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        plugin = DeepSpeedPlugin(hf_ds_config=deepspeed_configuration(launch, plan, optim), zero3_init_flag=False)
        accelerator = Accelerator(
            mixed_precision="no",  # DeepSpeed's torch_autocast section has the dtype
            gradient_accumulation_plugin=accumulation,
            deepspeed_plugin=plugin,
            kwargs_handlers=handlers,
        )
        if accelerator.distributed_type != DistributedType.DEEPSPEED:
            raise ConfigError(
                f"DeepSpeed was asked for, but accelerate chose {accelerator.distributed_type.value}; on a CPU launch "
                "with DS_ACCELERATOR=cpu and without ACCELERATE_USE_CPU"
            )
        return accelerator
    mixed = "no" if plan.precision == "fp32" else plan.precision
    plugin = fsdp_plugin(plan.gradient_compression == "bf16") if launch.fsdp and launch.ranks > 1 else None
    accelerator = Accelerator(
        cpu=cpu,
        mixed_precision=mixed,
        gradient_accumulation_plugin=accumulation,
        kwargs_handlers=handlers,
        fsdp_plugin=plugin,
    )
    if plugin is not None and cpu:
        on_a_cpu(accelerator, plugin)
    accelerator.ddp_handler = DdpOptions()
    ignore_strides_of_one()
    return accelerator


def wrap(
    model: nn.Module, optimizer: torch.optim.Optimizer, plan: Plan, accelerator: Accelerator, image_sizes: int = 1
):
    """(model, optimizer) ready for the trainer, which will be given images of so many sizes.

    The order matters: layout first, recompute inside compile, compile inside DDP (so that DDP's hooks see gradients,
    not graphs). Compilation is in place: the state dict keeps its names.
    """
    sharded = (DistributedType.DEEPSPEED, DistributedType.FSDP)
    if plan.channels_last and accelerator.distributed_type not in sharded:
        # They cut up weights by their bytes and want them contiguous; channels-last images are enough there.
        model = model.to(memory_format=torch.channels_last)
    if plan.sync_bn:
        # A group of their own: see engine.recovery.exchange.
        synchronise_norms(model, group_name(torch.distributed.new_group(timeout=accelerator.init_handler.timeout)))
    apply_policy(model, plan.policy)
    round_products(plan.tf32)  # before anything is compiled
    if plan.compile:
        set_partition(plan)
        allow_graphs(image_sizes)
        model.compile(dynamic=False)
    if accelerator.distributed_type == DistributedType.FSDP:
        shard_units(model, accelerator)
    cap_workspaces(plan.workspace_cap_bytes)
    if plan.device == "cuda":
        torch.backends.cudnn.benchmark = True
    return accelerator.prepare(model, optimizer)


def round_products(tf32: str) -> None:
    """Let a GPU take fp32 products in TF32, of all kinds, of convolutions alone or of none (PrecisionConfig.tf32).

    On an H200 fp32 matrices are multiplied at 51 TFLOP/s and at 411 in TF32 (profiles/h200/machine.json).
    """
    torch.backends.cuda.matmul.allow_tf32 = tf32 == "on"
    torch.backends.cudnn.allow_tf32 = tf32 != "off"


def set_partition(plan: Plan) -> None:
    """Let torch.compile's partitioner keep what the plan says, from the next compilation on."""
    torch._functorch.config.activation_memory_budget = plan.policy.partition or 1.0


def allow_graphs(image_sizes: int) -> None:
    """Let torch.compile keep a graph for each size of images, and for their evaluations.

    Beyond its limit of 8 (torch._dynamo.config.recompile_limit) it runs a network eager, with a line in a log.
    """
    import torch._dynamo.config

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, image_sizes + SPARE_GRAPHS)


def bare_module(model: nn.Module) -> nn.Module:
    """The network inside DistributedDataParallel, or itself.

    accelerate's `unwrap_model` imports DeepSpeed to look for its engine, which takes seconds where nobody uses it.
    """
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def share_buffers(buffers: Iterable[Tensor]) -> None:
    """Give all ranks the first one's values: it is the one whose running statistics are kept."""
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        for buffer in buffers:
            torch.distributed.broadcast(buffer, 0)


def cpu_threads(asked: int, launch: Launch) -> int:
    """Threads to compute with on a CPU: as asked, or OMP_NUM_THREADS, or the cores shared among this machine's ranks.

    Launchers set OMP_NUM_THREADS to 1 where the person set nothing, which leaves all cores but one idle; a 1 that
    comes through a launcher therefore counts as not set.
    """
    given = int(os.environ.get("OMP_NUM_THREADS", "0") or 0)
    launched = launch.ranks > 1 or "ACCELERATE_MIXED_PRECISION" in os.environ
    if asked or given > 1 or (given == 1 and not launched):
        return asked or given
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def share_cores(launch: Launch, threads: int = 0) -> None:
    """Compute with this rank's share of the cores, in libraries with an OpenMP of their own that load later too."""
    count = cpu_threads(threads, launch)
    torch.set_num_threads(count)
    os.environ["OMP_NUM_THREADS"] = str(count)


def prepare_device(launch: Launch, threads: int = 0) -> torch.device:
    """Make this rank's GPU the current one; where there is none or none is wanted, take a share of the cores.

    With the optimizer in host memory it takes a share of the cores beside the GPU. Comes before anything else that
    touches CUDA: a rank would open a context on the first GPU otherwise. Raises RankError for more ranks on this
    machine than GPUs.
    """
    if not use_cuda():
        torch.set_num_threads(cpu_threads(threads, launch))
        return torch.device("cpu")
    if launch.offload_optimizer:
        share_cores(launch, threads)
    found = torch.cuda.device_count()
    if launch.local_rank >= found:
        raise RankError(f"process {launch.rank} has no GPU of its own: this machine has {found}; lower --num_processes")
    say_unused(found)
    torch.cuda.set_device(launch.local_rank)
    return torch.device("cuda", launch.local_rank)


def eager_for_odd_shapes(compiled: bool, odd: bool) -> AbstractContextManager:
    """Run a batch of another size than the plan's without compiling for it: the tail of an epoch."""
    return torch.compiler.set_stance("force_eager") if compiled and odd else nullcontext()
