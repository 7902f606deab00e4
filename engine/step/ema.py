"""An exponential moving average of the weights: average += (1 - decay) · (weights - average), after every step.

Evaluated and kept in place of the weights themselves it is steadier and usually better (Polyak & Juditsky 1992,
"Acceleration of stochastic approximation by averaging"; Szegedy et al. 2015, arXiv:1512.00567, section 8).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from engine.config import ConfigError
from engine.step.wrap import share_buffers


class WeightAverage:
    """The average of a network's parameters and floating buffers; counters are copied.

    model  the network without DDP around it; its tensors have to be whole and stay the same objects
    decay  in (0, 1). It is reached slowly, min(decay, (1 + n) / (10 + n)) after n updates, so that a short run does not
           keep its initial weights (TensorFlow's ExponentialMovingAverage with num_updates)

    Raises ConfigError for 16-bit parameters, in which small changes would be lost.

    These are tensors and not torch's AveragedModel, which copies the module with all that is wrapped around it, and
    whose update waits for the GPU. The arithmetic is torch's, one kernel for all tensors and without a buffer.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        half = next((name for name, one in model.named_parameters() if one.dtype.itemsize < 4), None)
        if half is not None:
            raise ConfigError(f"--optim.ema needs fp32 parameters, and {half} has fewer bits; use --precision bf16")
        self.decay = decay
        self.updates: int | Tensor = 0
        """Steps averaged; on the device where only it knows which steps were skipped."""
        self._live: dict[str, Tensor] = dict(model.named_parameters()) | dict(model.named_buffers())
        self._average = {name: tensor.detach().clone() for name, tensor in self._live.items()}
        self._buffers = [self._average[name] for name, _ in model.named_buffers()]
        self._kinds: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
        for name, tensor in self._live.items():  # one dtype a call: mixed ones are taken one by one
            averages, weights = self._kinds.setdefault(tensor.dtype, ([], []))
            averages.append(self._average[name])
            weights.append(tensor)

    def tensors(self) -> list[Tensor]:
        """What the average holds in memory."""
        return list(self._average.values())

    @torch.no_grad()
    def update(self, made: Tensor | None = None) -> None:
        """Take in the weights of an optimizer step.

        made  bool [], on the device: whether the step was made or skipped; None is that it was
        """
        steps = self.updates if made is None else torch.as_tensor(self.updates, device=made.device)
        warmed = (1 + steps) / (10 + steps)
        decay = warmed.clamp(max=self.decay) if isinstance(warmed, Tensor) else min(self.decay, warmed)
        for dtype, (averages, weights) in self._kinds.items():
            if not dtype.is_floating_point:
                torch._foreach_copy_(averages, weights)
            elif made is None:
                get_ema_multi_avg_fn(decay)(averages, weights, None)
            else:
                share = ((1 - decay) * made).to(dtype)
                for average, weight in zip(averages, weights, strict=True):
                    average.lerp_(weight, share)
        self.updates = steps + 1 if made is None else steps + made

    @contextmanager
    def follow(self, optimizer: Any, scaler: torch.amp.GradScaler | None) -> Iterator[None]:
        """Take in the step that `optimizer` (accelerate's) makes inside, unless its gradients overflowed.

        Fused optimizers leave an overflow on the device; there the scale tells: it falls after one and never else.
        """
        before = None if scaler is None else _scale(scaler, optimizer)
        yield
        if not optimizer.step_was_skipped:
            self.update(None if scaler is None else _scale(scaler, optimizer) >= before)

    @contextmanager
    @torch.no_grad()
    def in_place(self) -> Iterator[None]:
        """Inside, the network has the averaged weights; afterwards its own again, bit for bit. All ranks enter.

        Ranks' weights are equal and so are the averages. BatchNorm's statistics are each rank's own, and those of the
        first count, as in a checkpoint.
        """
        share_buffers(self._buffers)
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        """Swap contents, a tensor at a time: no second copy of all, and compiled graphs keep their addresses."""
        for name, average in self._average.items():
            kept = average.clone()
            average.copy_(self._live[name])
            self._live[name].copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"updates": int(self.updates), "tensors": self._average}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave. Raises KeyError or RuntimeError for another network's."""
        self.updates = state["updates"]
        for name, average in self._average.items():
            average.copy_(state["tensors"][name])


def _scale(scaler: torch.amp.GradScaler, optimizer: Any) -> Tensor:
    """The loss scale [] on the device, a tensor of its own, without waiting for it."""
    device = optimizer.param_groups[0]["params"][0].device
    return scaler.scale(torch.ones((), device=device))
