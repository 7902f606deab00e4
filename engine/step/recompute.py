"""Activation recompute: keep some inputs only, run the forward again in the backward pass.

Chen et al. 2016, "Training deep nets with sublinear memory cost", arXiv:1604.06174. A Policy says which runs of a
network's blocks are recomputed as one (a segment), whether layers within them are recomputed once more (nested), and
whether what is kept goes to host memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from archs.fused import Fusable
from kernels.dispatch import taken_on

BatchNorm = nn.modules.batchnorm._BatchNorm  # the base of BatchNorm1d, 2d, 3d and SyncBatchNorm

REPLACED = "_hcr_replaced_forwards"
"""Where a model keeps what `clear_policy` puts back."""

Kind = Literal["none", "block", "first", "segments", "nested"]

REWRITTEN = "_hcr_undo_rewrite"


def keep_raw_outputs(model: nn.Module) -> Callable[[], None]:
    """Send every layer that knows it through `kernels`, whose operators keep a convolution's raw output only.

    Who convolves is left to what was measured on its GPU (kernels.dispatch): cuDNN where nothing was. Returns what
    undoes it.
    """
    taken = taken_on(next(model.parameters()).device)
    changed = [module for module in model.modules() if isinstance(module, Fusable) and module.fused == "off"]
    for module in changed:
        module.switch("auto", taken)

    def undo() -> None:
        for module in changed:
            module.switch("off")

    return undo


REWRITES: dict[str, Callable[[nn.Module], Callable[[], None]]] = {"raw outputs": keep_raw_outputs}
"""Ways to make a network save less without recompute, by name; a Policy's `rewrite` is one of them. A rewrite changes a
model in place, keeps its outputs (to rounding) and state dict, and returns what undoes it."""


@dataclass(frozen=True)
class Policy:
    """What is kept for the backward pass. Units are `model.blocks()`, counted from 0."""

    kind: Kind = "none"
    segments: tuple[tuple[int, int], ...] = ()
    """(first, behind the last) unit of each run that is recomputed as one; units in no segment keep what they save."""
    nested: bool = False
    """Layers inside a segment (a convolution with what follows it) are recomputed once more, each by itself."""
    offload: bool = False
    """What is kept goes to pinned host memory."""
    rewrite: str = ""
    """One of REWRITES, applied first."""
    partition: float = 0.0
    """Under torch.compile: its partitioner's `activation_memory_budget`, from 0 (exclusive) to 1, which is its default;
    0 is not compiled."""

    def around_forward(self, keep: Sequence[Tensor] = (), fake: bool = False) -> AbstractContextManager:
        """Context of the forward pass: moves what is saved to the host where the policy says so."""
        if not self.offload:
            return nullcontext()
        from engine.step.offload import Offload

        if fake:  # a simulation's host memory is the meta device, which is not counted
            return Offload(list(keep), store=lambda tensor: tensor.to("meta"), fetch=_fake_fetch)
        return Offload(list(keep))

    def describe(self) -> str:
        """For tables: `none`, `block`, `first 5 blocks`, `9 segments`, `9 nested segments`, with `+ offload`."""
        count = len(self.segments)
        shown = {
            "first": "first block" if count == 1 else f"first {count} blocks",
            "segments": f"{count} segments",
            "nested": f"{count} nested segments",
        }
        named = shown.get(self.kind, self.kind)
        if self.rewrite:
            named = self.rewrite if self.kind == "none" else f"{named} + {self.rewrite}"
        if self.partition:
            named = "compiled" if self.partition == 1 else f"compiled, budget {self.partition:g}"
        return named + (" + offload" if self.offload else "")


def _fake_fetch(copy: Tensor, device: torch.device) -> Tensor:
    return torch.empty_strided(copy.shape, copy.stride(), dtype=copy.dtype, device=device)


def by_block(units: int) -> Policy:
    """Every unit by itself."""
    return Policy("block", tuple((index, index + 1) for index in range(units)))


def first_blocks(count: int) -> Policy:
    """The first `count` units, each by itself: they have the largest maps."""
    return Policy("first", tuple((index, index + 1) for index in range(count)))


@contextmanager
def statistics_suspended(norms: list[Any]) -> Iterator[None]:
    """Let BatchNorm layers normalise with the batch's statistics and leave their running ones alone.

    The recompute is the second forward of the same images; without this it updates the running statistics twice
    (pytorch issue 96136).
    """
    suspended = [norm for norm in norms if norm.training and norm.running_mean is not None]
    kept = [(norm.running_mean, norm.running_var, norm.num_batches_tracked) for norm in suspended]
    for norm, (mean, var, _) in zip(suspended, kept, strict=True):
        # Scratch takes the update: checkpoint wants as many saved tensors as the first forward had.
        norm.running_mean, norm.running_var = torch.empty_like(mean), torch.empty_like(var)
        norm.num_batches_tracked = None
    try:
        yield
    finally:
        for norm, statistics in zip(suspended, kept, strict=True):
            norm.running_mean, norm.running_var, norm.num_batches_tracked = statistics


def recomputed(forward: Callable, norms: list[BatchNorm], *inputs):
    """`forward(*inputs)` keeping only the inputs, where there will be a backward pass."""
    if not torch.is_grad_enabled():
        return forward(*inputs)
    if torch.compiler.is_compiling():
        # AOTAutograd functionalises the running statistics: their update is traced once and is not part of what
        # the partitioner recomputes, so no context is needed (and Dynamo takes none).
        return checkpoint(forward, *inputs, use_reentrant=False)
    contexts = partial(_contexts, norms)
    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts)


def _contexts(norms: list[BatchNorm]) -> tuple:
    return nullcontext(), statistics_suspended(norms)


def _norms(modules: Sequence[nn.Module]) -> list[BatchNorm]:
    return [module for parent in modules for module in parent.modules() if isinstance(module, BatchNorm)]


def _in_turn(forwards: list[Callable], features: Tensor) -> Tensor:
    for forward in forwards:
        features = forward(features)
    return features


def _unchanged(features: Tensor) -> Tensor:
    return features


def layer_groups(unit: nn.Module) -> list[nn.Module]:
    """The modules within a unit that hold a convolution themselves (with its normalisation and activation)."""
    inside = [module for module in unit.modules() if module is not unit]
    return [module for module in inside if any(isinstance(child, nn.Conv2d) for child in module.children())]


def _replace_forward(model: nn.Module, module: nn.Module, forward: Callable) -> None:
    """Give `module` another forward and note on `model` what it had."""
    model.__dict__.setdefault(REPLACED, []).append((module, module.__dict__.get("forward")))
    module.forward = forward  # type: ignore[method-assign]


def clear_policy(model: nn.Module) -> None:
    """Take back what `apply_policy` did to `model`."""
    model.__dict__.pop(REWRITTEN, lambda: None)()
    for module, before in reversed(model.__dict__.pop(REPLACED, [])):
        if before is None:
            del module.forward
        else:
            module.forward = before


def apply_policy(model: Any, policy: Policy) -> Any:
    """Make `model` keep what `policy` says, in place; returns the model.

    Outputs, gradients, BatchNorm statistics and dropout masks stay as they were, and so do the names of the state
    dict. The first unit of a segment runs the whole segment, and the others hand their input on. Raises ValueError for
    a segment that the network does not have.
    """
    if policy.rewrite:
        model.__dict__[REWRITTEN] = REWRITES[policy.rewrite](model)
    units: list[nn.Module] = list(model.blocks()) if policy.segments else []
    for start, stop in policy.segments:
        if not 0 <= start < stop <= len(units):
            raise ValueError(f"there is no segment {start}:{stop} in a network of {len(units)} units")
        run = units[start:stop]
        if policy.nested:
            for unit in run:
                for group in layer_groups(unit):
                    _replace_forward(model, group, partial(recomputed, group.forward, _norms([group])))
        forward = run[0].forward if len(run) == 1 else partial(_in_turn, [unit.forward for unit in run])
        _replace_forward(model, run[0], partial(recomputed, forward, _norms(run)))
        for unit in run[1:]:
            _replace_forward(model, unit, _unchanged)
    return model


def recompute_blocks(model: Any) -> int:
    """Make every block of `model.blocks()` (archs.Classifier) recompute its activations; returns how many there are."""
    count = len(list(model.blocks()))
    apply_policy(model, by_block(count))
    return count
