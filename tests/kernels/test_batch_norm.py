"""BatchNorm on statistics: running buffers, momentum, evaluation, merging, and equality across ranks."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from kernels import (
    Statistics,
    batch_norm,
    conv2d,
    merge_statistics,
    norm_act,
    running_batch_norm,
    synchronise,
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


def _rank(rank, meeting, results):
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    whole = torch.randn(5, 4, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mine = (whole[:2] if rank == 0 else whole[2:]).clone().requires_grad_()
    weight = torch.eye(4, dtype=torch.float64)[:, :, None, None]
    y, statistics = conv2d(mine, weight, statistics=True)
    gamma, beta = torch.full((4,), 1.5, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    out = norm_act(y, batch_norm(synchronise(statistics), gamma, beta, 1e-5, "silu"))
    (out**3).sum().backward()
    results[rank] = (out.detach().numpy(), mine.grad.numpy())
    dist.destroy_process_group()


@pytest.mark.distributed
def test_two_ranks_with_unequal_batches_are_one_batch(tmp_path):
    """What SyncBatchNorm does, which in torch refuses CPU tensors: the same outputs and input gradients."""
    with mp.Manager() as manager:
        shared = manager.dict()
        mp.spawn(_rank, (str(tmp_path / "meeting"), shared), nprocs=2)
        results = dict(shared)
    whole = torch.randn(5, 4, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    out = nn.functional.silu(
        nn.functional.batch_norm(whole, None, None, torch.full((4,), 1.5).double(), torch.ones(4).double(), True)
    )
    (out**3).sum().backward()
    torch.testing.assert_close(torch.from_numpy(np.concatenate([results[0][0], results[1][0]])), out)
    torch.testing.assert_close(torch.from_numpy(np.concatenate([results[0][1], results[1][1]])), whole.grad)
