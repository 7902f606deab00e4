"""Recompute changes nothing that a network computes: logits, gradients, BatchNorm's statistics and counters."""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch

import archs
from engine.plan.memory.simulate import Step, simulate
from engine.plan.segments import best_segments
from engine.step.recompute import apply_policy, recompute_blocks


def step(model, images):
    """(logits, gradients, buffers) of one training step, dropout drawn from the same seed."""
    torch.manual_seed(1)
    output = model(images)
    logits = (output.logits, *output.auxiliary) if isinstance(output, archs.AuxiliaryOutput) else (output,)
    sum(part.square().sum() for part in logits).backward()
    return logits, {key: p.grad for key, p in model.named_parameters()}, dict(model.named_buffers())


def test_a_step_with_recompute_is_the_step_without(name, small_images):
    images = small_images(name, batch=2)
    plain = archs.build(name, num_classes=7, image_size=images.shape[-1]).train()
    other = copy.deepcopy(plain)
    assert recompute_blocks(other) == len(list(other.blocks())) > 1
    expected, actual = step(plain, images), step(other, images)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    counters = [buffer.item() for key, buffer in actual[2].items() if key.endswith("num_batches_tracked")]
    assert set(counters) <= {1}


@pytest.mark.slow
def test_a_step_with_the_best_segments_is_the_step_without(name, small_images):
    """Several blocks at once, and their layers once more: what hangs beside the chain ends a segment."""
    images = small_images(name, batch=2)
    size = images.shape[-1]
    units = simulate(partial(archs.build, name, 7, image_size=size), Step(size, 7, cuda=False)).units
    plain = archs.build(name, num_classes=7, image_size=size).train()
    assert len(units) == len(list(plain.blocks()))
    for policy in (best_segments(units), replace(best_segments(units), kind="nested", nested=True)):
        tested = copy.deepcopy(plain)
        expected, actual = step(copy.deepcopy(plain), images), step(apply_policy(tested, policy), images)
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)
