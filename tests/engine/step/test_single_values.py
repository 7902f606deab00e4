"""W17: a BatchNorm on one pixel of one image is told before training, and nothing else is refused."""

import pytest
import torch

import archs
from archs.fused import set_fused
from engine.config import ConfigError, OptimConfig, RunConfig
from engine.step.plan import Hardware, make_plan
from engine.step.single_values import refuse_single_values, single_valued


@pytest.mark.parametrize("fused", ["off", "on"])
@pytest.mark.parametrize(
    ("name", "size", "single"),
    [("resnet18", 32, True), ("resnet18", 64, False), ("convnet_bn", 32, False), ("nin", 64, False)],
)
def test_what_a_single_image_leaves(name, size, single, fused):
    network = archs.build(name, 2, image_size=size)
    set_fused(network, fused, "cpu")
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    assert (single_valued(network, size) is not None) is single
    assert all(torch.equal(before[key], tensor) for key, tensor in network.state_dict().items())


def test_what_would_do_is_said():
    network = archs.build("resnet18", 2, image_size=32)
    plan = make_plan(RunConfig(optim=OptimConfig(batch_size=1)), network, Hardware("cpu", "CPU"))
    with pytest.raises(ConfigError, match=r"sees one value.*--batch-size 2 or more, or a larger --image-size"):
        refuse_single_values(network, plan, 32)
    plan = make_plan(RunConfig(optim=OptimConfig(batch_size=2)), network, Hardware("cpu", "CPU"))
    refuse_single_values(network, plan, 32)
