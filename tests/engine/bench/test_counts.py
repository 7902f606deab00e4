"""What is counted rather than timed: kept bytes, operations, copies, layouts, waits."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import archs
from engine.bench.instrument.bare_loop import DTYPES, loss_of
from engine.bench.instrument.counts import Copies, counted_saved, forward_flops, saved_bytes
from engine.bench.instrument.floor import Rates, inference_work, training_work
from engine.bench.instrument.sides import Side, build_network, held_bytes


class Plain(nn.Module):
    """One 1x1 convolution and a mean: its backward pass needs the image and the weight alone."""

    def __init__(self, extra: float = 0.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 10, 1, bias=False)
        self.extra = extra

    def forward(self, images):
        maps = self.conv(images)
        if self.extra:
            maps = maps * torch.full_like(maps, 2.0)  # keeps the factor, of the maps' size
        return maps.mean(dim=(2, 3))


def test_kept_bytes_are_exact():
    images = torch.randn(2, 3, 8, 8)
    # kept beside weight and image: log-softmax's output [2, 10], the labels int64 [2] and the total weight
    loss = 2 * 10 * 4 + 2 * 8 + 4
    assert saved_bytes(Plain(), images) == loss
    # ... and the factor [2, 10, 8, 8]; the convolution's output is not needed for a constant factor
    assert saved_bytes(Plain(extra=1.0), images) == loss + 2 * 10 * 8 * 8 * 4


def test_a_storage_counts_once_and_whole():
    class Views(nn.Module):
        def forward(self, images):
            doubled = images * 2.0  # one storage, kept through two views of it
            return (doubled[:, :1].exp() * doubled[:, 1:2].sin()).mean(dim=(2, 3)).expand(-1, 10)

    images = torch.randn(2, 3, 8, 8, requires_grad=True)
    image, part = 2 * 3 * 64 * 4, 2 * 64 * 4
    kept = saved_bytes(Views(), images)
    assert image + 2 * part < kept < 2 * image + 3 * part


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_counting_without_memory_agrees_with_a_real_step(precision):
    side = Side("hcr:resnet18", precision, channels_last=True)
    counted = counted_saved(side, 32, DTYPES[precision])
    model = build_network(side, 32).to(memory_format=torch.channels_last)
    for batch in (2, 6):
        images = torch.randn(batch, 3, 32, 32).to(DTYPES[precision], memory_format=torch.channels_last)
        real = saved_bytes(model, images, DTYPES[precision])
        assert counted.at(batch) == pytest.approx(real, rel=0.002)  # fake BatchNorm keeps bf16 statistics, real fp32
    if precision == "bf16":
        weights = sum(p.numel() for p in model.parameters() if p.ndim == 4)
        assert counted.fixed >= 2 * weights, "weights in the compute dtype are kept whatever the batch"


def test_recompute_keeps_block_inputs_alone():
    side = Side("hcr:resnet18", "fp32", True)
    plain = counted_saved(side, 32, torch.float32)
    blocks = counted_saved(Side("hcr:resnet18", "fp32", True, recompute=True), 32, torch.float32)
    model = archs.build("resnet18", 10, image_size=32)
    inputs = []
    for block in list(model.blocks())[1:]:
        block.register_forward_pre_hook(lambda _, given: inputs.append(given[0][0].numel() * 4))
    model(torch.randn(2, 3, 32, 32))
    assert sum(inputs) <= blocks.per_image <= 1.3 * sum(inputs)
    assert blocks.per_image < 0.6 * plain.per_image


def test_operations_are_those_of_the_paper_and_three_times_in_training():
    """1.81 G multiply-adds of ResNet-18 at 224 px (He et al. 2015, table 1: 1.8), 2 operations each."""
    flops = forward_flops(Side("hcr:resnet18", "fp32", True), 224)
    assert flops == pytest.approx(2 * 1.814e9, rel=0.002)
    work = training_work(batch=4, forward_flops=100.0, saved_bytes=50.0, parameters=10, optimizer="adam")
    assert work.flops == 1200.0 and work.bytes == 2 * 4 * 50 + 10 * 4 * 10
    assert inference_work(4, 100.0, 10).flops == 400.0


def test_the_floor_is_the_slower_of_the_two():
    rates = Rates({"fp32": 100.0, "bf16": 400.0}, bytes_per_second=10.0)
    compute = training_work(1, 1000.0, 5.0, 0, "sgd").floor(rates, "fp32")
    assert compute["floor_seconds"] == 30.0 and compute["bound"] == "compute" and compute["traffic_seconds"] == 1.0
    traffic = training_work(1, 1000.0, 500.0, 0, "sgd").floor(rates, "bf16")
    assert traffic["floor_seconds"] == 100.0 and traffic["bound"] == "traffic"
    tensor_cores = Rates({"fp32": 1.0, "tf32": 8.0}, 1.0)
    assert tensor_cores.unit("fp32") == "tf32" and rates.unit("fp32") == "fp32"


def test_a_clean_step_copies_nothing_and_waits_for_nothing():
    model = build_network(Side("hcr:resnet18", "fp32", True), 32).to(memory_format=torch.channels_last)
    images = torch.randn(2, 3, 32, 32).to(memory_format=torch.channels_last)
    with Copies() as counted:
        F.cross_entropy(model(images), torch.tensor([1, 2])).backward()
    assert counted.layout_copies == counted.strided_convs == counted.waits == 0


def test_what_a_step_should_not_do_is_seen():
    images = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    conv = nn.Conv2d(3, 4, 3)
    with Copies() as counted:
        images.contiguous()
        assert counted.layout_copies == 1 and counted.copied_bytes == images.numel() * 4
        images.clone()
        assert counted.layout_copies == 1 and counted.copied_bytes == 2 * images.numel() * 4
        images.half()
        assert counted.copied_bytes == 2 * images.numel() * 4 + images.numel() * 2
        images.sum().item()
        assert counted.waits == 1
        conv(images)
        assert counted.strided_convs == 1, "the weight is contiguous"
    conv.to(memory_format=torch.channels_last)
    with Copies() as counted:
        torch.randn(2, 3, 1, 1).to(memory_format=torch.channels_last).contiguous()
        conv(images)
    assert counted.layout_copies == counted.strided_convs == 0
    assert set(counted.as_dict()) == {"copied_bytes", "layout_copies", "strided_convs", "waits"}


def test_losses_of_auxiliary_heads_of_both_kinds():
    logits, first, second = (torch.randn(4, 10) for _ in range(3))
    labels = torch.arange(4)
    ours = archs.AuxiliaryOutput(logits, (first,), (0.4,))
    expected = F.cross_entropy(logits, labels) + 0.4 * F.cross_entropy(first, labels)
    assert torch.allclose(loss_of(ours, labels), expected)
    expected = F.cross_entropy(logits, labels) + 0.3 * (
        F.cross_entropy(first, labels) + F.cross_entropy(second, labels)
    )
    assert torch.allclose(loss_of((logits, first, second), labels), expected)


def test_a_cpu_network_holds_nothing_on_a_gpu():
    model = nn.Linear(4, 4)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(2, 4)).sum().backward()
    optimizer.step()
    assert held_bytes(model, optimizer) == 0
