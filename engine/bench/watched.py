"""What the regression tests watch: a trainer's step and a loader's batch, counted where counting is exact, else timed.

Time is told as a ratio to a reference step, torchvision's network in plain PyTorch, that takes turns with the trainer's
in the same process: on a slower or busier machine both are slower.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
import torchvision

from engine.bench.instrument.bare_loop import CLASSES, ROTATED
from engine.bench.instrument.counts import Copies, saved_for_backward
from engine.bench.instrument.measure import Estimate, Race, Steps, processor_ratio
from engine.bench.suites.loader_rate import drawn_photos, photos
from engine.bench.suites.trainer_tax import ready_trainer
from engine.config import DataConfig
from engine.step.plan import use_cuda

if TYPE_CHECKING:
    from engine.train.trainer import Trainer

COUNTED = ("saved_bytes", "copied_bytes", "layout_copies", "strided_convs", "waits", "loader_copied_bytes")
"""Quantities that come out the same in every run."""
CLOCKS = ("wall", "processor")
"""The trainer's images/s ÷ the reference's, in wall clock, and on a CPU in processor time, which a busy machine leaves
as it is but which does not see a step that waits."""
REFERENCE = "torchvision, plain PyTorch"
"""Whose network and loop the trainer is compared with."""
LOADER_BATCH = 2


def subject() -> dict[str, Any]:
    """The trainer that is watched: the same network on every machine, larger where there is a GPU."""
    if use_cuda():
        return {"arch": "resnet50", "batch_size": 64, "image_size": 160, "precision": "bf16", "steps": 4}
    return {"arch": "resnet18", "batch_size": 8, "image_size": 32, "precision": "fp32", "steps": 4}


@contextmanager
def watched_trainer() -> Iterator[Trainer]:
    """The trainer of `subject`, set up as a run sets it up."""
    with ready_trainer(**subject()) as (trainer, _, _):
        trainer.model.train()
        yield trainer


def count_step(trainer: Trainer) -> dict[str, int]:
    """What one step of the trainer does: bytes kept for the backward pass; copies, layouts and waits of the host.

    The second step: the first one also makes what stays, such as the optimizer's state.
    """
    batch = trainer.train_loader.batch(0)  # type: ignore[union-attr]
    trainer.step.take(batch)
    with saved_for_backward(trainer.model, batch.images, batch.labels) as kept:
        trainer.step.take(trainer.train_loader.batch(1))  # type: ignore[union-attr]
    with Copies() as copies, _host_waits() as waited:
        trainer.step.take(batch)
    counts = copies.as_dict()
    counts["waits"] = max(counts["waits"], waited())
    return {"saved_bytes": kept.bytes()} | counts


@contextmanager
def _host_waits() -> Iterator[Any]:
    """Yields a function that gives the waits that CUDA itself reports; without a GPU always 0."""
    if not use_cuda():
        yield lambda: 0
        return
    import warnings

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield lambda: sum("synchroniz" in str(one.message) for one in told)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def count_loader() -> dict[str, int]:
    """Bytes that torch copies a batch between the decoder and the trainer, of the loader that a run here would use."""
    from engine.data.backend import make_loader

    device = torch.device("cuda" if use_cuda() else "cpu")
    config = DataConfig(name="folder", root=drawn_photos(), image_size=32, workers=1)
    source = photos(Path(drawn_photos()))
    loader = make_loader(source, "train", config=config, global_batch=LOADER_BATCH, device=device, seed=0)
    try:
        batches = loader.epoch(0)
        next(batches)
        with Copies() as copies:
            next(batches)
        batches.close()  # type: ignore[attr-defined]
    finally:
        loader.close()
    return {"loader_copied_bytes": copies.copied_bytes}


def reference_steps(seconds: float) -> Steps:
    """torchvision's network of the same name in a loop that is written out, as a contender of turns of `seconds`.

    No line of this project is in it, and it asks the same of caches and memory: against a reference that did not, eight
    runs of unchanged code scattered by 6 %, for neighbours slow the two down unequally.
    """
    torch.manual_seed(0)
    watched = subject()
    cuda, batch, size = use_cuda(), watched["batch_size"], watched["image_size"]
    device = torch.device("cuda" if cuda else "cpu")
    model = torchvision.models.get_model(watched["arch"], num_classes=CLASSES)
    model = model.to(device).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    images = [torch.randn(batch, 3, size, size).to(device, memory_format=torch.channels_last) for _ in range(ROTATED)]
    labels = torch.randint(CLASSES, (batch,), device=device)

    def step(number: int) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=watched["precision"] == "bf16"):
            loss = F.cross_entropy(model(images[number % ROTATED]), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return Steps(step, batch, device, seconds)


class StepRace:
    """The trainer's step against the reference's, a step each in turn (on a GPU a tenth of a second)."""

    def __init__(self, trainer: Trainer) -> None:
        batches: Any = trainer.train_loader
        device = trainer.accelerator.device
        seconds = 0.1 if device.type == "cuda" else 0.0

        def step(number: int) -> None:
            trainer.step.take(batches.batch(number))

        self.ours = Steps(step, subject()["batch_size"], device, seconds)
        self.reference = reference_steps(seconds)
        self._race = Race({"trainer": self.ours, "reference": self.reference})
        self._race.round(counted=False)

    def round(self) -> None:
        """One turn of both; raises RuntimeError where one of them fails."""
        self._race.round()
        if self._race.errors:
            raise RuntimeError("; ".join(f"{name}: {error}" for name, error in self._race.errors.items()))

    def ratios(self) -> dict[str, Estimate]:
        """Ours ÷ the reference by clock."""
        found = {"wall": self._race.comparison().ratio("reference")}
        processor = processor_ratio(self.ours, self.reference)
        return found | ({"processor": processor} if processor else {})


def measure_once(seconds: float) -> dict[str, Any]:
    """All quantities of one run: the counts, and the step's ratios after rounds for `seconds`."""
    with watched_trainer() as trainer:
        counts = count_step(trainer) | count_loader()
        race = StepRace(trainer)
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            race.round()
        return counts | {clock: ratio.median for clock, ratio in race.ratios().items()}


if __name__ == "__main__":
    import json
    import sys

    print(json.dumps(measure_once(float(sys.argv[1]))))
