"""BatchNorm over ranks equals BatchNorm over the whole batch: outputs, gradients, running statistics."""

import os
import weakref
from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from engine.step.sync_norm import SyncNorm, combined, counting, local_statistics, synchronise_norms

STEPS = 3
DTYPES = {"fp64": torch.float64}
"""Of parameters and images; else fp32."""


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3, bias=False), nn.BatchNorm2d(4)
    )


def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    # far from zero, so that a difference of large sums would show
    return 30 + torch.randn(12, 3, 9, 8, generator=generator)


def train(model: nn.Module, batch: torch.Tensor, counted: int | None = None) -> dict[str, torch.Tensor]:
    """Three steps on `batch`, with a loss of its first images; outputs, gradients summed over steps, buffers."""
    batch = batch.clone().requires_grad_()
    for _ in range(STEPS):
        output = model(batch)
        losses = (output * torch.linspace(-1, 1, output[0].numel()).view(output.shape[1:])).square()
        losses[:counted].sum().backward()
    result = {"output": output.detach(), "images": batch.grad}
    result |= {f"grad {name}": parameter.grad for name, parameter in model.named_parameters()}
    return result | {name: buffer.clone() for name, buffer in model.named_buffers()}


def one_rank(rank: int, sizes: list[int], port: int, precision: str, folder: str, fillers: int = 0) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=len(sizes))
    model = network().to(DTYPES.get(precision))
    assert synchronise_norms(model) == 2
    start = sum(sizes[:rank])
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        mine = images().to(DTYPES.get(precision))[start : start + sizes[rank]]
        with counting(model, len(mine) if fillers else None):
            result = train(
                model, torch.cat([mine, torch.full_like(images()[:fillers], 7.0, dtype=mine.dtype)]), len(mine)
            )
    if fillers:
        assert not result["images"][len(mine) :].any(), "what is not counted has no gradient"
        result |= {name: result[name][: len(mine)] for name in ("output", "images")}
    torch.save(result, f"{folder}/{rank}.pt")
    group = weakref.ref(dist.group.WORLD)
    dist.destroy_process_group()
    assert group() is None, "its threads outlive the interpreter, and may abort the process"


@pytest.mark.distributed
def test_two_ranks_in_double_are_the_whole_batch(tmp_path, free_port):
    """What is left in fp32 is rounding: no step in between is of less."""
    test_two_ranks_equal_the_whole_batch([5, 7], 2, tmp_path, free_port, precision="fp64", tolerance=1e-11)


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("sizes", "fillers"), [([6, 6], 0), ([5, 7], 2), ([12, 0], 1)], ids=["even", "uneven and fillers", "only a filler"]
)
def test_two_ranks_equal_the_whole_batch(sizes, fillers, tmp_path, free_port, precision="fp32", tolerance=1e-4):
    settings = sizes, free_port, precision, str(tmp_path), fillers
    mp.start_processes(one_rank, settings, nprocs=len(sizes), start_method="spawn")
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(len(sizes))]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        whole = train(network().to(DTYPES.get(precision)), images().to(DTYPES.get(precision)))
    for name, expected in whole.items():
        if name in ("output", "images"):
            found = torch.cat([part[name] for part in parts])
        elif name.startswith("grad"):
            found = sum(part[name] for part in parts)
        else:
            found = parts[0][name]
            torch.testing.assert_close(found, parts[1][name], rtol=0, atol=0)
        scale = expected.double().abs().max().clamp(min=1e-6).item()
        difference = (found.double() - expected.double()).abs().max().item()
        assert difference <= tolerance * scale, (name, difference, scale)


def test_combining_parts_is_the_whole():
    batch = 1000 + torch.randn(10, 5, 4, 4)
    parts = [local_statistics(part) for part in batch.split([3, 7])]
    counts = torch.tensor([[3.0 * 16], [7.0 * 16]])
    count, mean, m2 = combined(counts, *(torch.stack(values) for values in zip(*parts, strict=True)))
    assert count == 160
    torch.testing.assert_close(mean, batch.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(m2 / count, batch.var(dim=(0, 2, 3), correction=0), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_statistics_are_traced_without_their_images(device):
    """Compiling computes on fake tensors: an operator without a rule for them would run on zeros of full size."""
    with FakeTensorMode(allow_fallback_kernels=False):
        features = torch.empty(4, 3, 8, 8, device=device, dtype=torch.bfloat16)
        mean, m2 = local_statistics(features)
    for found in (mean, m2):
        assert found.shape == (3,) and found.dtype == torch.float32 and found.device.type == device


def test_alone_it_is_batchnorm():
    plain, other = network(), network()
    names = list(other.state_dict())
    synchronise_norms(other)
    assert list(other.state_dict()) == names
    assert sum(isinstance(module, SyncNorm) for module in other) == 2
    for left, right in zip(train(plain, images()).values(), train(other, images()).values(), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0)
    assert synchronise_norms(other) == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("compiled", [False, True])
def test_one_layer_on_a_gpu(dtype, compiled, free_port, monkeypatch):
    """In a group of one rank, where the sums still go through the group: as torch's BatchNorm."""
    torch._dynamo.reset()
    wrapped = partial(torch.compile, fullgraph=True) if compiled else lambda function: function
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port))
    dist.init_process_group("nccl", rank=0, world_size=1)
    try:
        compare_one_layer("cuda", dtype, 2e-2 if dtype != torch.float32 else 1e-4, wrapped)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_layer(dtype, free_port, monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port))
    dist.init_process_group("gloo", rank=0, world_size=1)
    try:
        compare_one_layer("cpu", dtype, 1e-2 if dtype != torch.float32 else 1e-5)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_compiled_layer(dtype, free_port, monkeypatch):
    """One graph, and the same gradients."""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port))
    torch._dynamo.reset()
    dist.init_process_group("gloo", rank=0, world_size=1)
    try:
        compare_one_layer(
            "cpu",
            dtype,
            1e-2 if dtype != torch.float32 else 1e-5,
            lambda function: torch.compile(function, backend="aot_eager", fullgraph=True),
        )
    finally:
        dist.destroy_process_group()


def compare_one_layer(device: str, dtype: torch.dtype, tolerance: float, wrapped=lambda function: function) -> None:
    from engine.step.sync_norm import _SyncNorm
    from kernels.over_ranks import group_name

    norm = nn.BatchNorm2d(3).to(device)
    nn.init.normal_(norm.weight)
    batch = images().to(device, dtype).contiguous(memory_format=torch.channels_last)
    gradient = torch.randn(batch.shape, device=device).to(dtype)
    found = []
    group = group_name()
    for function in (norm, wrapped(lambda x: _SyncNorm.apply(x, norm.weight, norm.bias, norm.eps, group)[0])):
        norm.zero_grad()
        leaf = batch.clone().requires_grad_()
        output = function(leaf)
        output.backward(gradient)
        assert output.dtype == leaf.grad.dtype == dtype
        found.append([output.detach(), leaf.grad, norm.weight.grad.clone(), norm.bias.grad.clone()])
    for ours, theirs in zip(*found[::-1], strict=True):
        difference = (ours.float() - theirs.float()).abs().max()
        assert difference <= tolerance * theirs.float().abs().max()
