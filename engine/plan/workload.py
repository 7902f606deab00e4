"""What a search looks at: a workload, ways to run its step, and what was found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn

from engine.config import OptimConfig
from engine.config.pixels.image_size import ImageSize, pixels_of
from engine.plan.calibration import Correction, Factors
from engine.plan.memory.cuda import Device
from engine.plan.memory.loader import Feed
from engine.plan.memory.trace import Category, Timeline
from engine.step.plan import Plan
from engine.step.ranks.shares import largest_share
from engine.step.recompute import Policy
from engine.step.recorded.choice import recordable

LABEL_AND_WEIGHT = 12
"""Bytes of an image's label and weight."""


@dataclass(frozen=True)
class Workload:
    """What is to be trained, on what."""

    name: str
    build: Callable[[], nn.Module]
    """The network; it is built on the meta device."""
    image_size: ImageSize
    num_classes: int
    global_batch: int
    optim: OptimConfig = field(default_factory=OptimConfig)
    ranks: int = 1
    zero_stage: int = 0
    offload_optimizer: bool = False
    sync_bn: bool = False
    halved: bool = False
    """Gradients are sent in bf16."""
    channels_last: bool = True
    feed: Feed = field(default_factory=Feed)
    channels: int = 3
    """Of the images."""
    cuda: bool = True
    """Planned for a GPU; off plans for CPU tensors alone."""
    expandable: bool = True
    """torch's allocator has expandable segments (engine.step.device_memory.allocator_settings)."""
    recorded: bool = False
    """Whole steps are recorded as one CUDA graph, where a candidate's can be (engine.step.recorded)."""
    device: Device = field(default_factory=Device)
    correction: Correction | None = None
    """What earlier runs measured on this GPU."""
    teacher: Callable[[], nn.Module] | None = None
    """Builds the network whose logits are learnt, where there is one."""

    @property
    def share(self) -> int:
        """Images of the largest share of the global batch that a rank has."""
        return largest_share(self.global_batch, self.ranks)

    def factors(self, precision: str, policy: Policy) -> Factors:
        """What a plan is multiplied by."""
        return self.correction.factors(self.name, precision, policy.describe()) if self.correction else Factors()

    def recording(self, precision: str, policy: Policy) -> tuple[int, int]:
        """Bytes that a recorded step takes beside a launched one: its own batch, and cuBLAS's workspaces once more, as
        it is on a stream of its own."""
        if not (self.recorded and recordable(policy)):
            return 0, 0
        pixels = self.channels * pixels_of(self.image_size) * (4 if precision == "fp32" else 2)
        return self.share * (pixels + LABEL_AND_WEIGHT), self.device.cublas

    @property
    def nccl(self) -> int:
        """Bytes of NCCL's channels; synchronised norms exchange over some of their own (engine.recovery.exchange)."""
        return (1 + self.sync_bn) * self.device.nccl if self.cuda and self.ranks > 1 else 0


@dataclass(frozen=True)
class Candidate:
    """One way to run a step, what it needs and what it costs."""

    precision: str
    micro: int
    accumulation: int
    policy: Policy
    predicted: dict[Category, int]
    """Bytes at the peak of one GPU."""
    allocated: int
    """Bytes of them in torch's allocator."""
    seconds: float
    """On the nominal card of engine.plan.memory.cost; only ratios mean something."""
    changes: tuple[str, ...]
    tier: int
    """0 keeps function and place, 1 micro-batches a network with BatchNorm, 2 offloads, 3 does both."""
    small_norm: bool
    """BatchNorm sees fewer than FEWEST_FOR_NORM images."""
    zero_stage: int = 0

    @property
    def peak(self) -> int:
        """Bytes that the device needs."""
        return sum(self.predicted.values())

    @property
    def order(self) -> tuple:
        """Candidates that fit are taken by this, smallest first; operators that were not timed come last of a tier."""
        return self.small_norm, self.tier, bool(self.policy.rewrite), self.seconds

    @property
    def plain(self) -> bool:
        """Nothing is recomputed, split or moved that torch.compile does not by itself."""
        return self.policy in (Policy(), Policy(partition=1.0)) and self.accumulation == 1


@dataclass(frozen=True)
class Result:
    """What a search found."""

    workload: Workload
    budget: int
    cap: int
    candidates: list[Candidate]
    chosen: Candidate | None
    least: Candidate | None
    """Where nothing fits: the candidate with the smallest need."""
    normalised: bool = False
    """The network has BatchNorm."""

    @property
    def cheapest(self) -> Candidate:
        """What costs are relative to: the least of all, whether it fits or not, of operators that were timed."""
        known = self.candidates or [self.least]
        return min((one for one in known if one), key=lambda one: (bool(one.policy.rewrite), one.seconds))

    @property
    def cheapest_is_not_timed(self) -> bool:
        """Whether a candidate of operators that were not timed is predicted to cost less."""
        return min(one.seconds for one in self.candidates) < self.cheapest.seconds

    def dominating(self) -> str:
        """The largest term of the smallest need, in words."""
        assert self.least is not None
        category, _ = max(self.least.predicted.items(), key=lambda item: item[1])
        return category.label


@dataclass(frozen=True)
class Planned:
    """A plan, and what to do if the run needs more than it says."""

    plan: Plan
    ladder: tuple[Plan, ...]
    """Plans that need less, to be tried in order when memory runs out all the same."""
    result: Result | None = None
    """What was searched; None where nothing was."""
    timeline: Timeline | None = None
    """The plan's step, where it was searched."""
