"""A search's candidates as a table, and the chosen one explained term by term."""

from __future__ import annotations

from engine.config.byte_sizes import GIB, gib
from engine.runs.text_table import text_table
from engine.runs.wording import DASH

SHARDS = "shards"
HEADS = (
    "precision",
    "images × parts × GPUs",
    SHARDS,
    "recompute",
    "peak",
    "largest terms",
    "cost",
    "BatchNorm sees",
    "",
)


def candidate_table(result, others=()) -> str:
    """Every candidate that was simulated, the chosen one marked.

    others  results under other ZeRO stages: what each has chosen, or its smallest need
    """
    cheapest = result.cheapest.seconds
    candidates = [*(result.candidates or [result.least]), *(one.chosen or one.least for one in others)]
    rows = []
    for candidate in sorted(candidates, key=lambda one: (one.tier, one.seconds)):
        terms = sorted(candidate.predicted.items(), key=lambda item: -item[1])[:2]
        load = result.workload
        sees = candidate.micro * (load.ranks if load.sync_bn else 1) if candidate.changes else load.global_batch
        images = f"{sees} image{'s' if sees > 1 else ''}" if result.normalised else DASH
        mark = "chosen" if candidate is result.chosen else "" if candidate.peak <= result.budget else "too large"
        rows.append(
            (
                candidate.precision,
                f"{candidate.micro} × {candidate.accumulation} × {load.ranks}",
                f"ZeRO-{candidate.zero_stage}" if candidate.zero_stage else "DDP" if load.ranks > 1 else "",
                candidate.policy.describe(),
                gib(candidate.peak),
                ", ".join(f"{category.label} {size / GIB:.1f}" for category, size in terms),
                f"{candidate.seconds / cheapest:.2f}",
                images,
                mark,
            )
        )
    if load.ranks == 1:
        return text_table(tuple(head for head in HEADS if head != SHARDS), [row[:2] + row[3:] for row in rows], left=3)
    return text_table(HEADS, rows, left=4)


def explanation(result, correction) -> str:
    """The chosen plan's peak term by term, what is assumed, and what earlier runs on this GPU measured."""
    load, chosen = result.workload, result.chosen
    rows = [(category.label, gib(size)) for category, size in sorted(chosen.predicted.items(), key=lambda it: -it[1])]
    device = load.device
    return "\n".join(
        [
            text_table(("at the peak", ""), [*rows, ("all", gib(chosen.peak))]),
            f"{'measured on this card' if device.measured else 'assumed'}: context {gib(device.outside)}, cuBLAS's "
            f"workspaces {gib(device.cublas)}; a convolution's: at most {gib(result.cap)} (CUDNN_CONV_WSCAP_DBG)",
            f"replayed: torch's allocator with{'' if load.expandable else 'out'} expandable segments, three steps",
            *([f"assumed: NCCL {gib(load.nccl)}, ZeRO's buckets as in configs/deepspeed"] if load.ranks > 1 else []),
            f"assumed: {load.feed.backend} reads images of {load.feed.side} px a side",
            correction.describe(),
            load.factors(chosen.precision, chosen.policy).describe() or "this plan is not corrected",
        ]
    )
