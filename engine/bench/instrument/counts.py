"""What a step is made of, counted, not timed: operations, bytes kept for the backward pass, copies, waits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from engine.bench.instrument.bare_loop import loss_of
from engine.bench.instrument.sides import Side, build_network

COUNTED = 2
"""Images of a counted step: BatchNorm needs two at the smallest maps."""


class Kept:
    """Storages that stay alive, each counted once and whole however many views of it there are."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        self._known = {_storage(tensor) for tensor in known}
        self._kept: dict[int, Tensor] = {}  # holding the tensors keeps their storages' addresses from being given again

    def add(self, tensor: Tensor) -> None:
        """Count a tensor's storage, unless it is counted or known."""
        if _storage(tensor) not in self._known:
            self._kept[_storage(tensor)] = tensor.detach()

    def bytes(self) -> int:
        """Of all of them."""
        return sum(tensor.untyped_storage().nbytes() for tensor in self._kept.values())


@contextlib.contextmanager
def saved_for_backward(model: nn.Module, *others: Tensor) -> Iterator[Kept]:
    """Within it, what autograd keeps for the backward pass is counted in the yielded object.

    Parameters, buffers and `others` (the input) are not counted: they are there in any case. What a custom Function
    keeps otherwise than by `save_for_backward` is not seen.
    """
    kept = Kept([*model.parameters(), *model.buffers(), *others])

    def pack(tensor: Tensor) -> Tensor:
        kept.add(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def saved_bytes(
    model: nn.Module, images: Tensor, autocast: torch.dtype = torch.float32, recomputed: Iterable[nn.Module] = ()
) -> int:
    """Bytes kept for the backward pass of one training step of `model` on `images` [N, 3, H, W].

    recomputed  blocks that keep their input alone (engine.step.recompute): autograd does not hold it, the block does
    """
    labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    enabled = autocast != torch.float32
    with contextlib.ExitStack() as stack:
        kept = stack.enter_context(saved_for_backward(model, images))
        for block in recomputed:
            hook = block.register_forward_pre_hook(lambda _, inputs: kept.add(inputs[0]))
            stack.callback(hook.remove)
        stack.enter_context(torch.autocast(images.device.type, autocast, enabled=enabled))
        loss = loss_of(model(images), labels)
    total = kept.bytes()
    del loss  # until here it held what is counted
    return total


class Saved(NamedTuple):
    """What a training step keeps for its backward pass."""

    per_image: int
    """Bytes that each image adds: activations."""
    fixed: int
    """Bytes whatever the batch: weights in the compute dtype, statistics."""

    def at(self, batch: int) -> int:
        """Bytes of a batch."""
        return self.fixed + batch * self.per_image


def counted_saved(side: Side, image_size: int, autocast: torch.dtype) -> Saved:
    """What a side's network keeps, counted on tensors without memory: no arithmetic.

    fp16 is counted as bf16, which takes as many bytes and which CPUs compute in.
    """
    autocast = torch.bfloat16 if autocast == torch.float16 else autocast
    with torch.device("meta"):
        model = build_network(side, image_size)
    with FakeTensorMode():
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = nn.Parameter(_laid_out(parameter))
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = _laid_out(buffer)
        blocks = list(model.blocks()) if side.recompute else []  # type: ignore[operator]

        def count(batch: int) -> int:
            images = torch.empty(batch, 3, image_size, image_size, dtype=autocast)
            return saved_bytes(model, images.to(memory_format=torch.channels_last), autocast, blocks)

        few, more = count(COUNTED), count(2 * COUNTED)
    per_image = (more - few) // COUNTED
    return Saved(per_image, few - COUNTED * per_image)


def _laid_out(tensor: Tensor) -> Tensor:
    """A tensor of the same shape and type on the CPU, channels-last where it has four dimensions."""
    layout = torch.channels_last if tensor.ndim == 4 else torch.contiguous_format
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", memory_format=layout)


def forward_flops(side: Side, image_size: int) -> int:
    """Floating-point operations of one image's forward pass in training, 2 a multiply-add, by torch's own counter.

    Convolutions, matrix products and attention; counted on the meta device. A training step takes 3 times this: the
    gradients of the input and of the weights are as large as the forward pass each.
    """
    with torch.device("meta"):
        model = build_network(side, image_size)
        images = torch.empty(COUNTED, 3, image_size, image_size)
    with FlopCounterMode(display=False) as counter:
        model(images)
    return counter.get_total_flops() // COUNTED


class Copies(TorchDispatchMode):
    """Counts, while it is entered, what a step should not do: copies, changes of layout, waits of the host.

    copied_bytes    written by copies, clones, conversions and `contiguous`
    layout_copies   copies from channels-last to another order or back, of 4-dimensional tensors larger than 1 × 1 px
    strided_convs   convolutions over images or weights that are not channels-last
    waits           times that the host asked for a value on the device: `.item()`, `if tensor:`, `.tolist()`
    """

    COPYING = ("aten::copy_", "aten::clone", "aten::_to_copy", "aten::contiguous")
    WAITING = ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal")

    def __init__(self) -> None:
        super().__init__()
        self.copied_bytes = self.layout_copies = self.strided_convs = self.waits = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: tuple = (), keywords: dict | None = None) -> Any:
        name = function._schema.name
        result = function(*arguments, **(keywords or {}))
        if name in self.COPYING:
            source = arguments[1] if name == "aten::copy_" else arguments[0]
            self.copied_bytes += result.numel() * result.element_size()
            self.layout_copies += _reordered(source, result)
        elif name in self.WAITING:
            self.waits += 1
        elif name in ("aten::convolution", "aten::convolution_backward"):
            places = arguments[:2] if name == "aten::convolution" else arguments[1:3]
            self.strided_convs += any(not _channels_last(tensor) for tensor in places)
        return result

    def as_dict(self) -> dict[str, int]:
        """The four counts."""
        names = ("copied_bytes", "layout_copies", "strided_convs", "waits")
        return {name: getattr(self, name) for name in names}


def _channels_last(tensor: Tensor) -> bool:
    return tensor.ndim != 4 or tensor.is_contiguous(memory_format=torch.channels_last)


def _reordered(source: Tensor, result: Tensor) -> bool:
    """Whether a copy changed between channels-last and contiguous; where both hold (1 channel, 1 × 1 px) it did not."""
    if source.ndim != 4 or result.ndim != 4:
        return False
    last = torch.channels_last
    before, after = source.is_contiguous(), result.is_contiguous()
    return before != after and source.is_contiguous(memory_format=last) != result.is_contiguous(memory_format=last)
