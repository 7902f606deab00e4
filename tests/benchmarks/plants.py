"""Slowdowns on purpose, to see that the regression tests notice: each patches the engine as a careless change would.

A test run plants the one that the environment variable PLANT names.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import wraps

import torch
from pytest import MonkeyPatch

GROWTH = 0.15
SLOWER = 0.10


def slow_step(patch: MonkeyPatch) -> None:
    """Every step computes for a tenth longer than it did, in processor time; on a GPU the device is kept busy."""
    from engine.train.trainer import Trainer

    original, lengths = Trainer._step, []

    def step(trainer, batch) -> None:
        cuda = batch.images.is_cuda
        began = time.process_time()
        if cuda:
            torch.cuda.synchronize()
            wall = time.perf_counter()
        original(trainer, batch)
        if cuda:
            torch.cuda.synchronize()
            lengths.append(time.perf_counter() - wall)
            torch.cuda._sleep(int(SLOWER * sorted(lengths)[len(lengths) // 2] * 1.5e9))
            return
        lengths.append(time.process_time() - began)
        typical = sorted(lengths)[len(lengths) // 2]
        until = time.process_time() + SLOWER * typical
        while time.process_time() < until:
            pass

    patch.setattr(Trainer, "_step", step)


def lost_channels_last(patch: MonkeyPatch) -> None:
    """The network keeps torch's default layout while the images come channels-last."""
    from engine.step import wrap

    original = wrap.wrap

    def forgets(model, optimizer, plan, accelerator):
        return original(model, optimizer, replace(plan, channels_last=False), accelerator)

    patch.setattr(wrap, "wrap", forgets)


def host_wait(patch: MonkeyPatch) -> None:
    """The loss is read in every step."""
    from engine.step import optimizer_step

    original = optimizer_step.loss_and_hits

    def reads(*arguments):
        loss, hits = original(*arguments)
        loss.item()
        return loss, hits

    patch.setattr(optimizer_step, "loss_and_hits", reads)


def doubled_copy(patch: MonkeyPatch) -> None:
    """The loader copies every batch of images once more."""
    from engine.data.loader import Loader

    for kind in subclasses(Loader):
        if "epoch" in vars(kind):
            patch.setattr(kind, "epoch", copying(kind.epoch))


def copying(epoch: Callable) -> Callable:
    """The same epoch with its images copied."""

    @wraps(epoch)
    def copied(*arguments, **keywords):
        for batch in epoch(*arguments, **keywords):
            yield replace(batch, images=batch.images.clone())

    return copied


def subclasses(kind: type) -> set[type]:
    """A class and all that inherit from it."""
    return {kind}.union(*(subclasses(child) for child in kind.__subclasses__()))


class Keeps(torch.autograd.Function):
    """The identity; it keeps a tensor that its backward pass does not need."""

    @staticmethod
    def forward(context, tensor, ballast):
        context.save_for_backward(ballast)
        return tensor.view_as(tensor)

    @staticmethod
    def backward(context, gradient):
        return gradient, None


def saved_bytes(patch: MonkeyPatch) -> None:
    """The network keeps 15 % more for its backward pass."""
    from engine.bench.instrument import counts
    from engine.train.trainer import Trainer

    original = Trainer.__init__

    def builds(trainer, *arguments, **keywords) -> None:
        original(trainer, *arguments, **keywords)
        images = trainer.train_loader.batch(0).images
        before = counts.saved_bytes(trainer.model, images)

        def keep(module, inputs, output):
            return Keeps.apply(output, torch.empty(round(GROWTH * before), dtype=torch.uint8, device=output.device))

        trainer.model.register_forward_hook(keep)

    patch.setattr(Trainer, "__init__", builds)


PLANTS = {
    "slow step": (slow_step, "test_step_time"),
    "lost channels-last": (lost_channels_last, "test_counts[strided_convs]"),
    "host wait": (host_wait, "test_counts[waits]"),
    "doubled copy": (doubled_copy, "test_counts[loader_copied_bytes]"),
    "saved bytes": (saved_bytes, "test_counts[saved_bytes]"),
}
"""By name: what plants it, and the test that must name it."""
