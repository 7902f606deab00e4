"""Operators made from memory: the same tensors as FakeTensorMode makes, and never where that cannot be known."""

from functools import partial

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import archs
from engine.plan.memory.cuda import CudaModel
from engine.plan.memory.replay import Replay
from engine.plan.memory.simulate import Simulator, Step
from engine.step.recompute import Policy

aten = torch.ops.aten
MODE = FakeTensorMode(allow_non_fake_inputs=True)


def facts(tensor):
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.storage_offset(), tensor.untyped_storage().nbytes()


@pytest.mark.parametrize(("arch", "size"), [("shufflenetv2_x1_0", 32), ("vit_d6", 32)])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_recording_is_the_same_from_memory(arch, size, precision):
    build = partial(archs.build, arch, 10, image_size=size)
    step = Step(size, 10, precision, policy=Policy("segments", ((0, 3),)))
    replayed, inferred = Simulator(build, device=CudaModel()), Simulator(build, device=CudaModel())
    inferred._replay = None
    for simulator in (replayed, inferred):
        simulator.record(step)
    ours, theirs = replayed.record(step), inferred.record(step)
    assert (ours.sizes.at(8) == theirs.sizes.at(8)).all() and (ours.category == theirs.category).all()
    assert ours.peak(8) == theirs.peak(8) and ours.saved(8) == theirs.saved(8)
    assert ours.operators.names == theirs.operators.names
    assert (ours.operators.flops.at(8) == theirs.operators.flops.at(8)).all()


def test_layouts_dtypes_and_arguments_make_another_result():
    replay = Replay(MODE)
    with MODE:
        images = torch.empty(2, 4, 8, 8)
        channels_last = images.to(memory_format=torch.channels_last)
        for arguments in ((images, 1), (channels_last, 1), (images, 1.5), (images.bfloat16(), 1), (images.long(), 1.0)):
            first = replay(aten.add.Tensor, arguments, {})
            again, expected = replay(aten.add.Tensor, arguments, {}), aten.add.Tensor(*arguments)
            assert facts(first) == facts(again) == facts(expected)
            assert again.untyped_storage() is not first.untyped_storage()
        cast = [replay(aten._to_copy.default, (images,), {"dtype": dtype}) for dtype in (torch.half, torch.double)]
        assert [tensor.dtype for tensor in cast] == [torch.half, torch.double]


def test_views_share_their_storage_and_in_place_is_in_place():
    replay = Replay(MODE)
    with MODE:
        for _ in range(2):
            images = torch.empty(2, 4, 8, 8)
            view = replay(aten._unsafe_view.default, (images, [8, 64]), {})
            assert view.untyped_storage() is images.untyped_storage()
            assert replay(aten.relu_.default, (images,), {}) is images
            assert replay(aten.t_.default, (replay(aten.view.default, (images, [8, 64]), {}),), {}).shape == (64, 8)


def test_several_results_and_none_among_them():
    replay = Replay(MODE)
    with MODE:
        images, weight = torch.empty(2, 4, 8, 8), torch.empty(6, 4, 3, 3)
        gradient = torch.empty(2, 6, 8, 8)
        rest = (None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [False, True, False])
        for _ in range(2):
            found = replay(aten.convolution_backward.default, (gradient, images, weight, *rest), {})
            assert found[0] is None and found[2] is None and found[1].shape == weight.shape
