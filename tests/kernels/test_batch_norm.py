"""BatchNorm on statistics: running buffers, momentum, evaluation, merging, and equality across ranks."""

from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from archs.fused import set_fused
from archs.layers import ConvNormAct, InvertedResidual
from engine.step.sync_norm import SyncNorm, counting, synchronise_norms
from kernels import (
    Statistics,
    batch_norm,
    conv2d,
    merge_statistics,
    norm_act,
    running_batch_norm,
    update_running,
)


def layer(module, x, weight):
    """Convolution, this package's BatchNorm from `module`'s parameters and buffers, ReLU."""
    if not module.training:
        opened = running_batch_norm(
            module.running_mean, module.running_var, module.weight, module.bias, module.eps, "relu"
        )
        return norm_act(conv2d(x, weight), opened)
    y, statistics = conv2d(x, weight, statistics=True)
    update_running(statistics, module.running_mean, module.running_var, module.momentum)
    return norm_act(y, batch_norm(statistics, module.weight, module.bias, module.eps, "relu"))


@pytest.mark.parametrize("momentum", [0.1, 0.01, 1.0])
def test_running_statistics_and_evaluation_are_torchs(momentum):
    torch.manual_seed(0)
    ours, theirs = nn.BatchNorm2d(6, momentum=momentum), nn.BatchNorm2d(6, momentum=momentum)
    weight = torch.randn(6, 4, 1, 1)
    for _ in range(3):
        x = torch.randn(3, 4, 5, 5) * 3 + 2
        torch.testing.assert_close(
            layer(ours, x, weight), theirs(nn.functional.conv2d(x, weight)).relu(), rtol=1e-5, atol=1e-5
        )
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    torch.testing.assert_close(
        layer(ours.eval(), x, weight), theirs.eval()(nn.functional.conv2d(x, weight)).relu(), rtol=1e-5, atol=1e-5
    )


def test_one_value_a_channel_is_refused_and_an_empty_batch_changes_nothing():
    mean, variance = torch.zeros(2), torch.ones(2)
    with pytest.raises(ValueError, match="no variance"):
        update_running(Statistics(torch.ones(2), torch.ones(2), 1), mean, variance, 0.1)
    update_running(Statistics(torch.ones(2), torch.ones(2), 0), mean, variance, 0.1)
    update_running(Statistics(torch.ones(2), torch.ones(2), torch.tensor(0.0)), mean, variance, 0.1)
    assert torch.equal(mean, torch.zeros(2)) and torch.equal(variance, torch.ones(2))


def test_merging_parts_is_the_whole_and_differentiable():
    x = (torch.randn(7, 3, dtype=torch.float64) + 1e3).requires_grad_()

    def merged(x):
        parts = x.split([1, 4, 2])
        means = torch.stack([part.mean(0) for part in parts])
        m2s = torch.stack([((part - part.mean(0)) ** 2).sum(0) for part in parts])
        counts = torch.tensor([[1.0], [4.0], [2.0]], dtype=torch.float64)
        return merge_statistics(counts, means, m2s)

    mean, m2, count = merged(x)
    assert count == 7
    torch.testing.assert_close(mean, x.mean(0))
    torch.testing.assert_close(m2, x.var(0, correction=0) * 7)
    torch.autograd.gradcheck(lambda x: merged(x)[:2], x)


def _network() -> nn.Module:
    """A stem and two MBConv blocks, one summed, fused: depthwise, pointwise, excited and library paths."""
    torch.manual_seed(0)
    model = nn.Sequential(
        ConvNormAct(3, 8, 3, stride=2, act=nn.SiLU),
        InvertedResidual(8, 24, 8, squeezed=4, act=nn.SiLU),
        InvertedResidual(8, 16, 12, 5, stride=2, squeezed=4, act=nn.SiLU),
    )
    set_fused(model, "on", "cpu")
    return model.to(memory_format=torch.channels_last)


def _images() -> torch.Tensor:
    """Far from 0, where a difference of large sums would show."""
    return 30 + torch.randn(5, 3, 12, 10, generator=torch.Generator().manual_seed(1))


def _two_steps(model: nn.Module, images: torch.Tensor, counted: int | None = None) -> dict[str, np.ndarray]:
    """Outputs, gradients summed over two steps of a loss of the first images, running statistics."""
    images = images.clone().requires_grad_()
    for _ in range(2):
        output = model(images)
        losses = (output * torch.linspace(-1, 1, output[0].numel()).view(output.shape[1:])).square()
        losses[:counted].sum().backward()
    found = {"output": output.detach(), "images": images.grad}
    found |= {f"grad {name}": parameter.grad for name, parameter in model.named_parameters()}
    return {name: value.numpy() for name, value in (found | dict(model.named_buffers())).items()}


def _rank(rank, meeting, results, fillers):
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    model = _network()
    assert synchronise_norms(model) == 7
    mine = _images()[:2] if rank == 0 else _images()[2:]
    shown = torch.cat([mine, torch.full_like(mine[:fillers], 7.0)])
    with exchanged_only_by_fused_operators(), counting(model, len(mine) if fillers else None):
        found = _two_steps(model, shown, len(mine))
    assert not found["images"][len(mine) :].any(), "what is not counted has no gradient"
    results[rank] = found | {name: found[name][: len(mine)] for name in ("output", "images")}
    dist.destroy_process_group()


def exchanged_only_by_fused_operators():
    """Within, a SyncNorm that runs as a module of its own, outside the fused path, is an error."""
    return mock.patch.object(SyncNorm, "forward", side_effect=AssertionError("a norm ran outside the fused path"))


@pytest.mark.distributed
@pytest.mark.parametrize("fillers", [0, 1])
def test_two_ranks_with_unequal_batches_are_one_batch(fillers, tmp_path):
    """SyncNorm in the fused path, fp32: outputs, gradients and running statistics of the whole batch in one process.

    Also where each rank shows an image that does not count.
    """
    with mp.Manager() as manager:
        shared = manager.dict()
        mp.spawn(_rank, (str(tmp_path / "meeting"), shared, fillers), nprocs=2)
        first, second = shared[0], shared[1]
    whole = _two_steps(_network(), _images())
    largest = max(np.abs(value).max() for name, value in whole.items() if name.startswith("grad "))
    for name, expected in whole.items():
        # A β that the next BatchNorm takes out again has a gradient of 0 and rounding: hence a share of the largest.
        floor = 1e-3 * largest if name.startswith("grad ") else 0.0
        if name in ("output", "images"):
            found = np.concatenate([first[name], second[name]])
        elif name.startswith("grad "):
            found = first[name] + second[name]
        else:
            found = first[name]
            assert np.array_equal(found, second[name]), name
        scale = max(np.abs(expected).max(), floor)
        assert np.abs(found - expected).max() <= 1e-4 * scale, name
