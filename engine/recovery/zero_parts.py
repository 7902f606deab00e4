"""What DeepSpeed's ZeRO spreads over ranks, under the names that one process has for it (engine.recovery.portable).

Stages 1 to 3 cut what belongs to a parameter out of one long vector: a rank holds a run of its elements, in order. A
part is that run, and says what shape the whole has. Where it lies is what DeepSpeed's own universal checkpoint goes by
(deepspeed/utils/tensor_fragment.py, stages 1 and 2) and its `safe_get_local_…` (stage 3).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from engine.recovery.portable import Source, host_copy, same_shape
from engine.recovery.shards import Part
from engine.step.optim import allocate_state


class Run(NamedTuple):
    """A rank's run of one tensor's elements."""

    begin: int
    values: Tensor
    """[n], a view of DeepSpeed's own memory; behind the tensor's end it is padding."""


class ZeroParts:
    """One engine's parameters and optimizer states.

    engine  as `deepspeed.initialize` gave it, of stage 1, 2 or 3
    """

    def __init__(self, engine: Any) -> None:
        self.module: nn.Module = engine.module
        self.zero = engine.optimizer
        self.base: torch.optim.Optimizer = self.zero.optimizer
        self.sharded = engine.zero_optimization_partition_weights()
        """Stage 3: parameters are in parts as well."""
        groups = self.zero.fp16_groups if self.sharded else self.zero.bit16_groups
        self._group = {id(one): place for place, group in enumerate(groups) for one in group}
        names = {id(one): name for name, one in self.module.named_parameters()}
        self.order = [names[id(one)] for group in groups for one in group]
        """Names of what is trained, in the order of the optimizer's own state."""

    @property
    def scaler(self) -> Any:
        """fp16's loss scaler, where there is one."""
        return getattr(self.zero, "torch_autocast_gradscaler", None)

    def parts(self) -> list[Part]:
        """This rank's, copied to the host. What all hold alike is the first one's."""
        self._allocate()  # where fp16's scaler has skipped every step so far
        first, found = dist.get_rank() == 0, []
        for name, parameter in self.module.named_parameters():
            shape = tuple(parameter.ds_shape if self.sharded else parameter.shape)  # type: ignore[attr-defined]
            if self.sharded:
                found += _part(f"model.{name}", self._weights(parameter), shape)
            elif first:
                found.append(Part(f"model.{name}", host_copy(parameter), (0,) * parameter.ndim))
            for key, value in self._state(parameter).items():
                if isinstance(value, Run):
                    found += _part(f"optimizer.{name}.{key}", value, shape)
                elif first:
                    found.append(Part(f"optimizer.{name}.{key}", host_copy(value), (0,) * value.ndim))
        persistent = self.module.state_dict()
        buffers = [name for name, _ in self.module.named_buffers() if name in persistent] if first else []
        return found + [
            Part(f"model.{name}", host_copy(persistent[name]), (0,) * persistent[name].ndim) for name in buffers
        ]

    @torch.no_grad()
    def load(self, source: Source) -> None:
        """Fill parameters, buffers and states from whole tensors. Raises as `engine.recovery.portable.load_parts`."""
        self._allocate()
        persistent = self.module.state_dict()
        for name, buffer in self.module.named_buffers():
            if name in persistent:
                buffer.copy_(same_shape(f"model.{name}", source, buffer.shape))
        for name, parameter in self.module.named_parameters():
            shape = parameter.ds_shape if self.sharded else parameter.shape  # type: ignore[attr-defined]
            whole = same_shape(f"model.{name}", source, shape)
            if not self.sharded or parameter.numel() == whole.numel():  # stage 3 keeps small ones whole, too
                parameter.copy_(whole)
            if self.sharded:
                _fill(self._weights(parameter), whole)
                if parameter.requires_grad:
                    _fill(self._state_run(parameter, None), whole)
            for key, value in self._state(parameter).items():
                if isinstance(value, Run):
                    _fill(value, same_shape(f"optimizer.{name}.{key}", source, shape))
                else:
                    value.copy_(same_shape(f"optimizer.{name}.{key}", source, value.shape))
        if not self.sharded:
            self.zero.refresh_fp32_params()

    def _allocate(self) -> None:
        """The optimizer's states, which a first step would make, where there are none."""
        if any(self.base.state.values()):
            return
        if self.sharded:
            self.zero._clear_fp32_optimizer_param_groups()
            self.zero._set_fp32_optimizer_param_groups()
            allocate_state(self.base)
            self.zero._clear_fp32_optimizer_param_groups()
            return
        flat = self.zero.single_partition_of_fp32_groups
        kept = [one.grad for one in flat]  # an offload's buffer
        allocate_state(self.base)
        for one, gradient in zip(flat, kept, strict=True):
            one.grad = gradient

    def _flat(self, parameter: nn.Parameter) -> Tensor:
        """The long vector that this rank has of the parameter's group."""
        if self.sharded:
            return self.zero.fp32_partitioned_groups_flat[self.zero.grad_position[self.zero.get_param_id(parameter)][0]]
        return self.zero.single_partition_of_fp32_groups[self._group[id(parameter)]]

    def _state(self, parameter: nn.Parameter) -> dict[str, Run | Tensor]:
        """What the optimizer keeps of it: runs of elements, and what is one for its group, as a count of steps."""
        if id(parameter) not in self._group:
            return {}
        flat = self._flat(parameter)
        found: dict[str, Run | Tensor] = {}
        for key, value in self.base.state[flat].items():
            if not isinstance(value, Tensor):
                continue
            if value.shape != flat.shape:
                found[key] = value
            elif (run := self._state_run(parameter, key)) is not None:
                found[key] = run
        return found

    def _state_run(self, parameter: Any, key: str | None) -> Run | None:
        """This rank's elements of a state, or with no key of the fp32 weights; None where it has none of them."""
        if self.sharded:
            values, _ = self.zero._get_fp32_opt_state_partition(parameter, False, key)
            return Run(dist.get_rank() * len(values), values)
        if (mapping := parameter._hp_mapping) is None:
            return None
        flat, place = self._flat(parameter), mapping.hp_fragment_address
        vector = flat if key is None else self.base.state[flat][key]
        return Run(mapping.lp_fragment_address.start, vector.narrow(0, place.start, place.numel))

    def _weights(self, parameter: Any) -> Run:
        values = parameter.ds_tensor.view(-1)
        return Run(dist.get_rank() * len(values), values)


def _part(name: str, run: Run, shape: tuple[int, ...]) -> Iterator[Part]:
    """Without the padding; nothing where it is all padding."""
    count = min(len(run.values), torch.Size(shape).numel() - run.begin)
    if count > 0:
        yield Part(name, host_copy(run.values[:count]), (run.begin,), shape)


def _fill(run: Run | None, whole: Tensor) -> None:
    """Put what belongs into this rank's run; padding is zero."""
    if run is not None:
        mine = whole.reshape(-1)[run.begin : run.begin + len(run.values)]
        run.values[: len(mine)].copy_(mine)
        run.values[len(mine) :].zero_()
