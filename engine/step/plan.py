"""From what was asked and what is there to how the run will be done: precision, micro-batches, compile, ZeRO stage.

A Plan is made before anything is allocated. The global batch is always what was asked. Where it does not divide over
the ranks, shares differ by one image, and the plan is that of the largest.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import nn

from engine.config import ConfigError, RunConfig, require
from engine.config.byte_sizes import gib
from engine.step.finetune import frozen_text, is_frozen
from engine.step.optim import state_elements
from engine.step.ranks.shares import largest_share, refuse_few, refuse_parted_pairs
from engine.step.recompute import Policy, by_block
from engine.step.recorded.choice import choose_cuda_graph

Precision = Literal["fp32", "bf16", "fp16"]


def use_cuda() -> bool:
    """Whether to compute on a GPU: there is one, and `accelerate launch --cpu` did not say otherwise."""
    return torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "false").lower() not in ("true", "1")


@dataclass(frozen=True)
class Hardware:
    """What a rank computes on: device type and what its arithmetic units do natively."""

    type: Literal["cuda", "cpu"]
    name: str
    capability: tuple[int, int] = (0, 0)
    """CUDA compute capability; (0, 0) on a CPU."""
    native_bf16: bool = False
    memory_bytes: int = 0

    @classmethod
    def detect(cls) -> Hardware:
        """The current CUDA device where there is one and it is wanted, else this CPU."""
        if use_cuda():
            facts = torch.cuda.get_device_properties(torch.cuda.current_device())
            capability = (facts.major, facts.minor)
            return cls("cuda", facts.name, capability, capability >= (8, 0), facts.total_memory)
        import psutil

        native = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
        return cls("cpu", "CPU", native_bf16=native, memory_bytes=psutil.virtual_memory().total)


@dataclass(frozen=True)
class Plan:
    """How a run is carried out. Byte counts are per rank."""

    device: str
    device_name: str
    precision: Precision
    loss_scaling: bool
    global_batch_size: int
    micro_batch_size: int
    accumulation: int
    ranks: int
    recompute: str
    """In words, as `Policy.describe`."""
    compile: bool
    channels_last: bool
    zero_stage: int
    parameter_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    changes: tuple[str, ...] = ()
    """In words, what the plan computes differently from one GPU taking the whole batch at once."""
    policy: Policy = field(default_factory=Policy)
    normalised: bool = False
    """The network has BatchNorm."""
    sync_bn: bool = False
    gradient_compression: str = "none"
    """Type that gradients are sent in over ranks; none is theirs, fp32."""
    offload_optimizer: bool = False
    fsdp: bool = False
    """By torch's FSDP2, which keeps what ZeRO-3 does."""
    budget_bytes: int = 0
    """Device memory that the plan was made for; 0 is none: nothing was searched."""
    workspace_cap_bytes: int = 0
    """The most that a convolution's workspace may take; 0 is no cap."""
    predicted_bytes: dict[str, int] = field(default_factory=dict)
    """At the step's peak, by category."""
    predicted_peak_bytes: int = 0
    """All of them: what the device needs."""
    predicted_allocated_bytes: int = 0
    """Those in torch's allocator: what `torch.cuda.max_memory_allocated` will say."""
    predicted_reserved_bytes: int = 0
    """What the allocator will hold of the card for them by a replay of its rules; 0 where that was not replayed."""
    correction: str = ""
    """In words, what the prediction was multiplied by; empty where it was not."""
    frozen: str = ""
    """In words, what is not trained and what that saves."""
    tf32: str = "convolutions"
    """Which fp32 products a GPU may take in TF32, as PrecisionConfig.tf32 says."""
    cuda_graph: bool = False
    """Whole steps are recorded as one CUDA graph (engine.step.recorded)."""
    relative_cost: float = 0.0
    """Predicted time of a step over the cheapest candidate's, whether that fits or not."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for plan.json."""
        return dataclasses.asdict(self) | {"changes": list(self.changes)}

    def memory_line(self) -> str:
        """The predicted peak and its largest parts, for the terminal; empty where nothing was predicted."""
        if not self.predicted_bytes:
            return ""
        parts = sorted(self.predicted_bytes.items(), key=lambda item: -item[1])[:3]
        text = ", ".join(f"{name} {gib(size)}" for name, size in parts)
        budget = f" of {gib(self.budget_bytes)}" if self.budget_bytes else ""
        eager = " (without torch.compile, which keeps less)" if self.compile and not self.policy.partition else ""
        corrected = f"; {self.correction}" if self.correction else ""
        return f"predicted peak {gib(self.predicted_peak_bytes)}{budget}{eager}: {text}{corrected}"

    def describe(self) -> str:
        """One line for the terminal."""
        split = f"batch {self.global_batch_size}"
        if self.ranks > 1 or self.accumulation > 1:
            split += f" = {self.micro_batch_size} × {self.accumulation} accumulated × {self.ranks} ranks"
        rounded = self.device == "cuda" and self.precision == "fp32" and self.tf32 == "on"
        precision = self.precision + (" with loss scaling" if self.loss_scaling else " in TF32" if rounded else "")
        parts = [self.device_name, precision, split]
        parts += ["torch.compile"] if self.compile else []
        parts += ["one CUDA graph a step"] if self.cuda_graph else []
        parts += [f"recompute {self.recompute}"] if self.recompute not in ("none", "compiled") else []
        parts += ["FSDP2"] if self.fsdp else [f"ZeRO-{self.zero_stage}"] if self.zero_stage else []
        parts += ["SyncBatchNorm"] if self.sync_bn else []
        parts += ["gradients sent in bf16"] if self.gradient_compression == "bf16" else []
        return " · ".join(parts)


def choose_precision(asked: Precision | Literal["auto"], hardware: Hardware) -> Precision:
    """bf16 where it is native; fp16 on Volta and Turing, whose bf16 is emulated; else fp32.

    Pascal and older run fp16 at a fraction of their fp32 rate (CUDA C++ Programming Guide, arithmetic throughput).
    Raises ConfigError for what is none, which Python lets through, and for fp16 on a CPU.
    """
    known = get_args(Precision)
    require(asked in ("auto", *known), f"precision must be auto, {', '.join(known)}, not {asked!r}")
    if asked != "auto":
        if asked == "fp16" and hardware.type == "cpu":
            raise ConfigError("--precision fp16 needs a GPU; on a CPU use bf16 or fp32")
        return asked
    if hardware.native_bf16:
        return "bf16"
    return "fp16" if hardware.type == "cuda" and hardware.capability >= (7, 0) else "fp32"


def choose_compile(asked: str, hardware: Hardware, zero_stage: int = 0) -> bool:
    """On with a GPU whose code Triton can generate (compute capability 7.0 and up); off on a CPU.

    On a CPU it gains little and takes long: profiles/cpu2-avx512-amx/compile.json. ZeRO-3 gathers parameters in hooks
    that a compiled graph does not call: off, and ConfigError where it is asked for.
    """
    require(not (asked == "on" and zero_stage == 3), "--compile with ZeRO-3 is not supported; use ZeRO-2")
    if asked != "auto":
        return asked == "on"
    return zero_stage < 3 and hardware.type == "cuda" and hardware.capability >= (7, 0)


def split_batch(batch_size: int, ranks: int, micro_batch_size: int) -> tuple[int, int]:
    """(micro-batch, accumulation) of the largest share of the global batch that a rank has.

    The micro-batch is at most what was asked for: as many as it takes, as even as can be. Where they do not come out
    even, the last ones are filled up with images that do not count (engine.step.micro_batches).

    Raises ConfigError for a batch of fewer images than ranks, and for more than a share.
    """
    refuse_few(batch_size, ranks)
    share = largest_share(batch_size, ranks)
    require(
        micro_batch_size <= share,
        f"micro-batches of {micro_batch_size} are more than a rank's share of {share} images",
    )
    accumulation = -(-share // (micro_batch_size or share))
    return -(-share // accumulation), accumulation


def function_changes(
    normalised: bool, batch: int, micro: int, accumulation: int, ranks: int, sync_bn: bool
) -> tuple[str, ...]:
    """In words, where BatchNorm sees other images than on one GPU that takes the whole batch at once."""
    if not normalised or micro * (ranks if sync_bn else 1) >= batch:
        return ()
    if sync_bn and ranks > 1:
        return (f"BatchNorm sees {micro * ranks} images over all ranks, not the whole batch of {batch}",)
    changes = []
    if accumulation > 1:
        changes.append(f"BatchNorm sees micro-batches of {micro} images, not {largest_share(batch, ranks)}")
    if ranks > 1:
        changes.append(f"BatchNorm sees each rank's {micro} images, not the whole batch of {batch}")
    return tuple(changes)


def make_plan(config: RunConfig, model: nn.Module, hardware: Hardware, ranks: int = 1, zero_stage: int = 0) -> Plan:
    """Decide how `config` runs on `ranks` devices like `hardware`; the model may lie on the meta device.

    Raises ConfigError for a batch that does not split, or a precision that the hardware does not have.
    """
    refuse_parted_pairs(config.augment, config.optim.batch_size, ranks)
    micro, accumulation = split_batch(config.optim.batch_size, ranks, config.parallel.micro_batch_size)
    precision = choose_precision(config.precision.precision, hardware)
    compiled = choose_compile(config.model.compile, hardware, zero_stage)
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    normalised = any(not is_frozen(module) for module in norms)
    synchronised = config.parallel.sync_bn and ranks > 1
    changes = function_changes(normalised, config.optim.batch_size, micro, accumulation, ranks, synchronised)
    asked = config.memory.recompute
    require(
        asked in ("auto", "none", "block"),
        f"--recompute {asked} depends on the network's sizes: give a --gpu-memory to plan for",
    )
    policy = by_block(len(list(model.blocks()))) if asked == "block" else Policy()  # type: ignore[attr-defined,operator]
    recorded = choose_cuda_graph(
        config.model.cuda_graph,
        config,
        getattr(model, "arch", config.model.arch),
        hardware.name,
        hardware.type,
        precision,
        ranks,
        zero_stage,
        policy,
    )
    parameters = 4 * sum(parameter.numel() for parameter in model.parameters())
    trained = 4 * sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    states = 4 * state_elements(model, config.optim)
    return Plan(
        device=hardware.type,
        device_name=hardware.name,
        precision=precision,
        loss_scaling=precision == "fp16",
        global_batch_size=config.optim.batch_size,
        micro_batch_size=micro,
        accumulation=accumulation,
        ranks=ranks,
        recompute=policy.describe(),
        compile=compiled,
        channels_last=config.model.channels_last,
        zero_stage=zero_stage,
        parameter_bytes=parameters // (ranks if zero_stage >= 3 else 1),
        gradient_bytes=trained // (ranks if zero_stage >= 2 else 1),
        optimizer_bytes=states // (ranks if zero_stage >= 1 else 1),
        changes=changes,
        policy=policy,
        normalised=normalised,
        sync_bn=synchronised,
        gradient_compression=config.parallel.gradient_compression if ranks > 1 else "none",
        frozen=frozen_text(model, states / max(1, trained)),
        cuda_graph=recorded,
        tf32=config.precision.tf32,
    )
