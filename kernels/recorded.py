"""What the operators would launch, in the order of a step that runs on tensors without memory.

Within `recorded`, the body of each operator of this package runs on meta tensors as it would on a GPU: its kernels are
listed instead of launched, and so are the library's operators that move memory, inside operators and between them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kernels.conv import conv_backward_op, conv_op
from kernels.excited_pointwise import excited_pointwise_backward_op, excited_pointwise_op
from kernels.norm_act import norm_act_backward_op, norm_act_op
from kernels.offline import Launch, caught_launches
from kernels.shuffle import shuffle_op
from kernels.squeeze_excite import squeeze_excite_backward_op, squeeze_excite_op

OPERATORS = {
    op._opoverload: op._init_fn
    for op in (
        conv_op,
        conv_backward_op,
        excited_pointwise_op,
        excited_pointwise_backward_op,
        norm_act_op,
        norm_act_backward_op,
        shuffle_op,
        squeeze_excite_op,
        squeeze_excite_backward_op,
    )
}
"""Each operator's body: torch's dispatch of meta tensors would take the one that only knows shapes."""
ALLOCATING = ("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided")


class LibraryCall(NamedTuple):
    """An operator of the library, at least one launch: its name, and the bytes of its tensors, each once."""

    name: str
    moved_bytes: int
    inside: bool
    """Of one of this package's operators, where no compiler can join it with its neighbours."""
    operations: int = 0
    """Multiplications and additions of a product of two matrices."""


class _Recording(TorchDispatchMode):
    def __init__(self, calls: list[Launch | LibraryCall]) -> None:
        super().__init__()
        self.calls = calls
        self.depth = 0

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operator in OPERATORS:
            self.depth += 1
            try:
                with self:
                    return OPERATORS[operator](*args, **(kwargs or {}))
            finally:
                self.depth -= 1
        result = operator(*args, **(kwargs or {}))
        name = operator._schema.name.removeprefix("aten::")
        own, given = _storages(result), _storages((args, kwargs))
        # Inside an operator `to` and `contiguous` come whole, and may give back what they were given.
        if name not in ALLOCATING and (operator._schema.is_mutable or not own.keys() <= given.keys()):
            operations = 0
            if name in ("mm", "addmm"):
                a, b = [value for value in args if isinstance(value, Tensor)][-2:]
                operations = 2 * a.numel() * b.shape[1]
            self.calls.append(LibraryCall(name, sum((own | given).values()), self.depth > 0, operations))
        return result


def _storages(values: Any) -> dict[int, int]:
    """Bytes of each tensor's elements by its memory."""
    tensors = [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
    return {tensor.untyped_storage()._cdata: tensor.numel() * tensor.itemsize for tensor in tensors}


@contextmanager
def recorded() -> Iterator[list[Launch | LibraryCall]]:
    """Within, launches and the library's operators are listed; all tensors must be on the meta device."""
    with ExitStack() as stack:
        calls: list[Launch | LibraryCall] = stack.enter_context(caught_launches())  # type: ignore[assignment]
        for room in {body.__module__ for body in OPERATORS.values()}:
            stack.enter_context(mock.patch.object(sys.modules[room], "runs_triton", lambda x: x.dtype != torch.float64))
        stack.enter_context(_Recording(calls))
        yield calls
