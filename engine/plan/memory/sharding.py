"""What several GPUs change: DDP's buckets, and what ZeRO shards, gathers and buffers.

Rajbhandari et al. 2020, "ZeRO", arXiv:1910.02054; buffer sizes are those of configs/deepspeed/.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.plan.memory.trace import Category

ELEMENT = 4  # parameters, gradients and states are fp32
REDUCE_BUCKET = 50_000_000
PREFETCH_BUCKET = 20_000_000
PERSISTENT = 100_000
"""Elements up to which stage 3 keeps a parameter whole on every GPU."""


@dataclass(frozen=True)
class Parameters:
    """Elements of a network's parameters."""

    total: int
    largest: int
    """Of the largest tensor."""
    small: int
    """In tensors of at most PERSISTENT elements."""
    trained: int
    """In tensors that are trained; the others have neither gradients nor states."""
    states: float
    """fp32 values an optimizer keeps a parameter: 1 for momentum, 2 for Adam, in between where shapes differ."""


@dataclass(frozen=True)
class Sharding:
    """Static bytes on one GPU, by category, and what a step moves between GPUs."""

    static: dict[Category, int]
    traffic: int
    """Bytes each GPU sends a step."""


def shard(parameters: Parameters, ranks: int, stage: int, offload_optimizer: bool, halved: bool = False) -> Sharding:
    """Parameters, gradients, optimizer states and ZeRO's buffers of one of `ranks` GPUs under ZeRO `stage`.

    stage              0 is DDP (or one GPU), whose buckets are the gradients themselves (gradient_as_bucket_view)
    offload_optimizer  states and the fp32 shard that they update are in host memory
    halved             gradients are sent in bf16, of which each bucket under way has a copy: under DDP all can be
    """
    whole = ELEMENT * parameters.total
    trained = ELEMENT * parameters.trained
    part = -(-trained // ranks)
    static = {
        Category.PARAMETERS: whole,
        Category.GRADIENTS: trained,
        Category.OPTIMIZER: round(parameters.states * (part if stage else trained)),
        Category.COMMUNICATION: 0,
    }
    if stage:
        # DeepSpeed updates a separate fp32 copy of its shard and copies that back.
        static[Category.OPTIMIZER] += part
        buffers = 2 if stage >= 2 else 1  # overlap_comm fills one while the other is reduced
        static[Category.COMMUNICATION] += buffers * ELEMENT * REDUCE_BUCKET
    if halved and ranks > 1:
        static[Category.COMMUNICATION] += (
            ELEMENT // 2 * (min(REDUCE_BUCKET, parameters.trained) if stage else parameters.trained)
        )
    if stage >= 2:
        static[Category.GRADIENTS] = part
    if stage == 3:
        kept = ELEMENT * parameters.small
        static[Category.PARAMETERS] = kept + -(-(whole - kept) // ranks)
        gathered = min(whole, ELEMENT * (PREFETCH_BUCKET + parameters.largest))
        static[Category.COMMUNICATION] += gathered
    if offload_optimizer:
        static[Category.OPTIMIZER] = 0
    gradients = trained // 2 if halved else trained
    # Gradients are reduce-scattered, then DDP gathers their sums, ZeRO the parameters; stage 3 gathers these twice.
    moved = gradients + (2 * whole if stage == 3 else trained if stage else gradients)
    return Sharding(static, moved * (ranks - 1) // ranks)
