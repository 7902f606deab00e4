"""Layers through `kernels`: between two of them there is one tensor, the raw output of a convolution.

A block runs its layers over a `Pending`: each opens what the last one left (BatchNorm, activation, shuffle),
convolves and leaves its own. At the block's end `settle` does what is left in one pass, the residual sum
included. Parameters, buffers and their names are those of the plain layers; `set_fused` is the switch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

import kernels
from kernels import Prologue, Statistics
from kernels.conv import call
from kernels.dispatch import Fused, choose, fuses, taken_on


class Excitation(NamedTuple):
    """A squeeze-and-excitation that waits: W₁, b₁, W₂, b₂ and the activation between (`kernels.squeeze_excite`)."""

    layers: tuple[Tensor, Tensor, Tensor, Tensor]
    act: str


class Pending(NamedTuple):
    """A tensor [N, C, H, W], and what is to be done to it before it means anything.

    In this order: prologue, then excitation or channel shuffle; there are never both.
    """

    raw: Tensor
    prologue: Prologue = Prologue()
    shuffle: int = 1
    excitation: Excitation | None = None


class Fusable(nn.Module):
    """A layer or block with a second way through, in `kernels`."""

    fused: Fused = "off"
    """auto and on go that way; they differ in who convolves: kernels.dispatch.choose."""
    taken: frozenset[str] = frozenset()
    """Layers that auto gives to the kernels on this network's GPU (kernels.dispatch.taken_on)."""

    def leave_open(self, pending: Pending) -> Pending:
        """This layer over what the last one left; blocks have none and close theirs in `forward`."""
        return self.through(self.children(), pending)

    def through(self, layers: Iterable[nn.Module], features: Tensor | Pending) -> Pending:
        """The layers in order, the way that this one is switched: `run`."""
        return run(layers, features, self.fused, self.taken)

    def switch(self, fused: Fused, taken: frozenset[str] = frozenset()) -> None:
        """Go the way that `fused` says from now on."""
        self.fused, self.taken = fused, taken


def set_fused(model: nn.Module, fused: Fused, device: torch.device | str, arch: str = "") -> bool:
    """Switch every `Fusable` in the model; returns whether the fused way is taken.

    arch  the network's name, by which auto looks its step up (kernels.dispatch.fuses); without one auto is off
    """
    through = fuses(fused, device, arch)
    taken = taken_on(device) if through and fused == "auto" else frozenset()
    for module in model.modules():
        if isinstance(module, Fusable):
            module.switch(fused if through else "off", taken)
    return through


def run(
    layers: Iterable[nn.Module], features: Tensor | Pending, fused: Fused, taken: frozenset[str] = frozenset()
) -> Pending:
    """The layers in order; one that `kernels` does not know gets a settled tensor and gives one.

    fused, taken  as a Fusable has them
    """
    pending = features if isinstance(features, Pending) else Pending(features)
    waiting = list(layers)
    while waiting:
        layer = waiting.pop(0)
        follower = waiting[0] if waiting else None
        if type(layer) is nn.Sequential:
            waiting = [*layer, *waiting]
        elif type(layer) is nn.Conv2d and isinstance(follower, nn.BatchNorm2d):
            pending = convolve(pending, layer, waiting.pop(0), fused, taken)
        elif type(layer) is nn.Conv2d:
            pending = convolve(pending, layer, None, fused, taken)
        elif isinstance(layer, Fusable) and type(layer).leave_open is not Fusable.leave_open:
            pending = layer.leave_open(pending)
        elif activation(layer) is not None and pending.prologue.act == "identity":
            pending = excited(pending)
            act, slope = activation(layer) or ("identity", 0.0)
            pending = pending._replace(prologue=pending.prologue._replace(act=act, slope=slope))
        else:
            pending = Pending(layer(settle(pending)))
    return pending


def activation(layer: nn.Module) -> tuple[str, float] | None:
    """The layer as an activation of `kernels` and its slope; None where it is not one."""
    names: dict[type, str] = {
        nn.Identity: "identity",
        nn.ReLU: "relu",
        nn.ReLU6: "relu6",
        nn.LeakyReLU: "leaky_relu",
        nn.SiLU: "silu",
        nn.Hardswish: "hardswish",
    }
    name = names.get(type(layer))
    return None if name is None else (name, getattr(layer, "negative_slope", 0.01))


def excited(pending: Pending) -> Pending:
    """The same with the excitation done, where one waits."""
    if pending.excitation is None:
        return pending
    layers, act = pending.excitation
    return Pending(kernels.squeeze_excite(pending.raw, *layers, prologue=pending.prologue, act=act))


def settle(pending: Pending, residual: Tensor | None = None, residual_after_activation: bool = False) -> Tensor:
    """Do what is left, and add the residual, in one pass: [N, C, H, W] channels-last."""
    pending = excited(pending)
    raw = pending.raw
    if residual is not None and residual.dtype != raw.dtype:
        residual = residual.to(raw.dtype)
    if residual is None and pending.prologue.is_identity() and pending.shuffle == 1:
        return raw
    if residual is not None and pending.shuffle > 1:
        settled = kernels.channel_shuffle(kernels.norm_act(raw, pending.prologue), pending.shuffle)
        return settled + residual
    settled = kernels.norm_act(raw, pending.prologue, residual, residual_after_activation)
    return kernels.channel_shuffle(settled, pending.shuffle)


def convolve(
    pending: Pending,
    conv: nn.Conv2d,
    norm: nn.Module | None,
    fused: Fused,
    taken: frozenset[str] = frozenset(),
) -> Pending:
    """A convolution and the BatchNorm behind it over what was pending; `norm` None leaves the raw output alone.

    A depthwise convolution does not see a shuffle: it takes its parameters in the order of the channels before it,
    and the shuffle stays pending. An excitation goes into a pointwise convolution's load.
    """
    if not _known(conv, norm):
        features = conv(settle(pending))
        return Pending(features if norm is None else norm(features))
    kind = pending.raw.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind) and pending.raw.dtype == torch.float32:
        pending = pending._replace(raw=pending.raw.to(torch.get_autocast_dtype(kind)))
    layer = (conv.weight, conv.stride, conv.padding, conv.groups, fused, taken)
    if pending.excitation is not None and choose(pending.raw, *layer, excited=True) == "aten":
        pending = excited(pending)
    raw, shuffle = pending.raw, pending.shuffle
    path = choose(raw, *layer)
    weight, order = conv.weight, None
    if shuffle > 1 and conv.groups == conv.in_channels == conv.out_channels:
        order = kernels.shuffle_order(conv.in_channels, conv.in_channels // shuffle, raw.device)
        weight, shuffle = weight[order], 1
    if path == "pointwise" and shuffle > 1 and not _reads_shuffled(shuffle, conv):
        path = "aten"
    measure = norm is not None and (norm.training or norm.running_mean is None)
    if pending.excitation is not None:
        layers, act = pending.excitation
        result = kernels.excited_pointwise_conv2d(
            raw, weight, *layers, prologue=pending.prologue, act=act, statistics=measure
        )
    else:
        result = call(
            raw, weight, conv.stride, conv.padding, conv.dilation, conv.groups, shuffle, pending.prologue, measure, path
        )
    left = pending.shuffle if order is not None else 1
    if norm is None:
        return Pending(result, shuffle=left)
    gamma, beta = (norm.weight, norm.bias) if order is None else (norm.weight[order], norm.bias[order])
    if not measure:
        mean, variance = norm.running_mean, norm.running_var
        if order is not None:
            mean, variance = mean[order], variance[order]
        return Pending(result, kernels.running_batch_norm(mean, variance, gamma, beta, norm.eps), left)
    y, statistics = result
    group = norm.exchange_group() if _across_ranks(norm) else None
    if group is not None:
        if norm.counted is not None:
            statistics = _of_the_first(y, norm.counted)
        statistics = kernels.synchronise(statistics, group)
    _update(norm, statistics, None if order is None else pending.shuffle)
    return Pending(y, kernels.batch_norm(statistics, gamma, beta, norm.eps), left)


def _of_the_first(y: Tensor, images: int) -> Statistics:
    """Statistics of the first so many images, where the others fill up a shape: a tail's, not worth a kernel."""
    values = y[:images].float()
    if not images:
        zeros = values.sum(dim=(0, 2, 3))
        return Statistics(zeros, zeros, 0)
    mean = values.mean(dim=(0, 2, 3))
    m2 = (values - mean.view(1, -1, 1, 1)).square().sum(dim=(0, 2, 3))
    return Statistics(mean, m2, values.numel() // values.shape[1])


def _known(conv: nn.Conv2d, norm: nn.Module | None) -> bool:
    """Whether the pair is one that `convolve` can do; the others run as they are."""
    plain = conv.bias is None and conv.padding_mode == "zeros" and isinstance(conv.padding, tuple)
    if norm is None:
        return plain
    standard = (type(norm) is nn.BatchNorm2d or _across_ranks(norm)) and norm.affine and norm.momentum is not None
    return plain and standard


def _across_ranks(norm: nn.Module) -> bool:
    """A BatchNorm that may have statistics of all ranks, and says over which group (engine.step.sync_norm)."""
    return hasattr(norm, "exchange_group")


def _reads_shuffled(shuffle: int, conv: nn.Conv2d) -> bool:
    return shuffle == conv.groups and conv.in_channels % shuffle**2 == 0


def _update(norm: nn.Module, statistics: Statistics, shuffle: int | None) -> None:
    """Running statistics, in the module's order of channels, and its count of batches."""
    if norm.running_mean is None or not norm.training:
        return
    if shuffle is not None:
        order = kernels.shuffle_order(len(statistics.mean), shuffle, statistics.mean.device)
        statistics = Statistics(statistics.mean[order], statistics.m2[order], statistics.count)
    kernels.update_running(statistics, norm.running_mean, norm.running_var, norm.momentum)
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
