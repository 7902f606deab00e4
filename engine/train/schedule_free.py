"""What a schedule-free optimizer has learnt: the average x of its weights, and BatchNorm's statistics at x.

Defazio et al. 2024, arXiv:2405.15682. Gradients are taken at y, between x and the base optimizer's z; the network holds
y in training and in checkpoints, x while it is evaluated and where its weights are kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from engine.config.optimizers import OPTIMIZERS
from engine.step.finetune import is_frozen
from engine.step.micro_batches import micro_batches
from engine.step.sync_norm import counting
from engine.step.wrap import bare_module, eager_for_odd_shapes, share_buffers

BATCHES = 50
"""Of training images from which BatchNorm's statistics at x are taken, as the authors' README advises."""


class AveragedPoint:
    """Puts x in place of y for a while. `trainer` has network, optimizer, plan and training images."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self._known: tuple[int, list[Tensor]] | None = None
        """Steps made, and the buffers at the x of then."""

    @classmethod
    def of(cls, trainer: Any) -> AveragedPoint | None:
        """The point of that run, None where its optimizer has none."""
        return cls(trainer) if OPTIMIZERS[trainer.config.optim.optimizer].schedule_free else None

    @contextmanager
    @torch.no_grad()
    def in_place(self, measured: bool = True) -> Iterator[None]:
        """Inside, the network is x; afterwards it is y again, bit for bit. All ranks enter.

        measured  BatchNorm has the statistics at x; else, where they are not known of this step, it keeps those at y
        """
        model, optimizer = bare_module(self.trainer.model), self.trainer.optimizer.optimizer
        live = [parameter.detach() for parameter in model.parameters()] + list(model.buffers())
        kept = [tensor.clone() for tensor in live]
        training = model.training
        optimizer.eval()
        try:
            self._statistics(model, optimizer.param_groups[0]["k"], measured)
            model.train(training)
            yield
        finally:
            optimizer.train()
            for tensor, before in zip(live, kept, strict=True):
                tensor.copy_(before)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint, so that it can be evaluated: as `WeightAverage.state_dict`. Any rank may ask."""
        with self.in_place(measured=False):
            tensors = {name: one.clone() for name, one in bare_module(self.trainer.model).state_dict().items()}
        return {"updates": 0, "tensors": tensors}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing: the optimizer's own state has all of it."""

    def _statistics(self, model: nn.Module, steps: int, measured: bool) -> None:
        """Give BatchNorm the statistics of training images at x; once a step, an evaluation and a file share them."""
        norms = [one for one in model.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)]
        norms = [norm for norm in norms if not is_frozen(norm)]
        if not norms or not (measured or (self._known and self._known[0] == steps)):
            return
        if self._known is None or self._known[0] != steps:
            self._measure(model, norms)
            share_buffers(model.buffers())
            self._known = steps, [buffer.clone() for buffer in model.buffers()]
        for buffer, known in zip(model.buffers(), self._known[1], strict=True):
            buffer.copy_(known)

    def _measure(self, model: nn.Module, norms: list[nn.modules.batchnorm._BatchNorm]) -> None:
        """The plain mean over BATCHES batches. torch's `update_bn` would take those of frozen layers anew as well."""
        trainer = self.trainer
        usual = [norm.momentum for norm in norms]
        devices = [trainer.accelerator.device] if trainer.accelerator.device.type == "cuda" else []
        batches = trainer.train_loader.epoch(trainer.progress.epoch, 0)
        model.train()
        seen = 0
        try:
            with torch.random.fork_rng(devices), eager_for_odd_shapes(trainer.plan.compile, True):
                for batch in islice(batches, BATCHES):
                    for images, *_, counted in micro_batches(batch, trainer.plan):
                        seen += 1
                        for norm in norms:
                            norm.momentum = 1 / seen
                        with counting(model, counted):
                            model(images)
        finally:
            batches.close()
            for norm, momentum in zip(norms, usual, strict=True):
                norm.momentum = momentum
