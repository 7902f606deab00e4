"""A trainer small enough for unit tests: a tiny network, images made in memory, no decoding."""

import socket
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from engine.config import LogConfig, MemoryConfig, ModelConfig, OptimConfig, ParallelConfig, PrecisionConfig, RunConfig


@dataclass
class MadeBatch:
    """The fields of engine.data's Batch."""

    images: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    global_count: int
    count: int
    readable: int
    lost: bool = False
    gone: bool = False


class MadeLoader:
    """Random images with a rule to learn; order and tail as the real loader's."""

    backend, place = "made", "made/"

    def __init__(
        self,
        images: int,
        batch: int,
        shuffle: bool,
        unreadable: frozenset[int] = frozenset(),
        device: str = "cpu",
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(images, 3, 6, 6, generator=generator)
        self.labels = (self.images.mean(dim=(1, 2, 3)) > 0).long()
        self.batch, self.shuffle, self.unreadable = batch, shuffle, unreadable
        self.steps_per_epoch = -(-images // batch)
        self.device = device
        self.bad_images: list = []

    def __len__(self) -> int:
        return len(self.images)

    def epoch(self, epoch: int, start_step: int = 0):
        generator = torch.Generator().manual_seed(epoch)
        order = torch.randperm(len(self), generator=generator) if self.shuffle else torch.arange(len(self))
        for step in range(start_step, self.steps_per_epoch):
            picked = order[step * self.batch : (step + 1) * self.batch]
            weights = torch.tensor([float(int(index) not in self.unreadable) for index in picked])
            tensors = (tensor.to(self.device) for tensor in (self.images[picked], self.labels[picked], weights))
            yield MadeBatch(*tensors, len(picked), len(picked), int(weights.sum()))

    def close(self) -> None:
        pass


class TinyNet(nn.Module):
    """A convolution, dropout and a classifier; BatchNorm on request."""

    def __init__(self, norm: bool = True, dropout: float = 0.2) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(8, 2)

    def blocks(self):
        yield self.stem

    def forward(self, images):
        return self.head(self.dropout(self.norm(self.stem(images)).relu().mean(dim=(2, 3))))


@pytest.fixture
def reset_accelerator():
    """A function that forgets the state accelerate keeps in class attributes; called now and afterwards too."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    def reset() -> None:
        for state in (AcceleratorState, PartialState, GradientState):
            state._reset_state()

    reset()
    yield reset
    reset()


@pytest.fixture
def free_port() -> int:
    """A TCP port that nobody listens on."""
    return unused_port()


def unused_port() -> int:
    """The same, for fixtures of a wider scope."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def rescue_of(trainer, ladder=()):
    """A rescue of `trainer`'s steps with other plans to fall back on."""
    from engine.recovery.rescue import Rescue

    return Rescue(trainer.step, trainer.checkpointer, trainer.folder, ladder)


@pytest.fixture
def make_trainer(tmp_path, reset_accelerator):
    """A factory of trainers in folders of their own."""
    from engine.recovery.interrupt import Interrupt
    from engine.runs.runfolder import RunFolder
    from engine.step.optim import build_optimizer
    from engine.step.plan import Hardware, make_plan
    from engine.step.wrap import Launch, build_accelerator, wrap
    from engine.train.trainer import Trainer

    def build(
        name: str = "run",
        model: nn.Module | None = None,
        images: int = 44,
        optim: OptimConfig | None = None,
        micro: int = 0,
        log: LogConfig | None = None,
        compile: str = "off",
        cuda_graph: str = "off",
        precision: str = "fp32",
        recompute: str = "none",
        device: str = "cpu",
        unreadable: frozenset[int] = frozenset(),
    ) -> Trainer:
        reset_accelerator()
        torch.manual_seed(0)
        config = RunConfig(
            model=ModelConfig(compile=compile, cuda_graph=cuda_graph),
            optim=optim or OptimConfig(epochs=3, batch_size=16, lr=0.01),
            precision=PrecisionConfig(precision),
            memory=MemoryConfig(recompute),
            parallel=ParallelConfig(micro),
            log=log or LogConfig(every=2),
        )
        model = model or TinyNet()
        hardware = Hardware.detect() if device == "cuda" else Hardware("cpu", "CPU")
        plan = make_plan(config, model.to(device), hardware)
        optimizer = build_optimizer(model, config.optim)
        launch = Launch(0, 0, 1, None)
        accelerator = build_accelerator(plan, launch, config.optim)
        folder = RunFolder(Path(tmp_path) / name)
        folder.checkpoints.mkdir(parents=True, exist_ok=True)
        train = MadeLoader(images, config.optim.batch_size, True, unreadable, device)
        val = MadeLoader(30, config.optim.batch_size, False, device=device)
        model, optimizer = wrap(model, optimizer, plan, accelerator)
        torch.manual_seed(1)
        return Trainer(config, plan, accelerator, model, optimizer, train, val, ["no", "yes"], folder, Interrupt())

    return build
