"""The simulator against real steps on this CPU and against torch's own tracker."""

from dataclasses import replace
from functools import partial

import numpy
import pytest
import torch
from torch import nn

import archs
import archs.cost
from engine.bench.memory_simulator import NETWORKS, POLICIES, compare, good
from engine.config import OptimConfig
from engine.config.optimizers import OPTIMIZERS
from engine.plan.memory.cuda import CudaModel
from engine.plan.memory.simulate import Simulator, Step, Stepper, Untraceable, run_step, simulate
from engine.plan.memory.trace import Category
from engine.plan.memory.tracker import Tracker
from engine.step.optim import state_elements
from engine.step.recompute import Policy, by_block

resnet18 = partial(archs.build, "resnet18", 10)
SMALL = Step(32, 10, cuda=False)


@pytest.mark.parametrize(
    ("arch", "precision", "kind", "size"),
    [
        ("resnet18", "fp32", "none", 32),
        ("resnet18", "bf16", "segments", 32),
        ("inceptionv3", "fp32", "block", 75),
        ("inceptionv3", "bf16", "none", 75),
    ],
)
def test_as_counted_on_real_tensors(arch, precision, kind, size):
    row = compare(arch, precision, kind, 4, size)
    assert good(row), row
    assert row["predicted_saved"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", POLICIES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("arch", NETWORKS)
def test_every_network_as_counted(arch, precision, kind):
    row = compare(arch, precision, kind, 4, max(64, archs.lookup(arch).minimum_size))
    assert good(row), row


def test_another_batch_needs_no_other_recording():
    trace = simulate(resnet18, SMALL)
    for batch in (2, 7, 16):
        model = resnet18().to(memory_format=torch.channels_last).train()
        assert trace.peak(batch) == run_step(model, SMALL, batch, Tracker()).peak(batch)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_as_torchs_own_tracker_says(optimizer, monkeypatch):
    """MemTracker's peak of one step with states, gradients and images on the same footing (unrounded on a CPU).

    It is a dispatch mode itself, under which autograd adds no gradients in place.
    """
    monkeypatch.setattr(Tracker, "sums_in_place", False)
    from torch.distributed._tools.mem_tracker import MemTracker

    step = replace(SMALL, optim=OptimConfig(optimizer=optimizer))
    trace = simulate(resnet18, step)
    from engine.step.loss import loss_and_hits
    from engine.step.optim import build_optimizer

    model = resnet18().to(memory_format=torch.channels_last).train()
    adam = build_optimizer(model, step.optim)
    images = torch.zeros(8, 3, 32, 32).to(memory_format=torch.channels_last)
    labels, weights = torch.zeros(8, dtype=torch.long), torch.ones(8)

    def once():
        loss, _ = loss_and_hits(model(images), labels, weights, 0.0)
        (loss * 1.0).backward()
        adam.step()
        adam.zero_grad()

    once()
    memory = MemTracker()
    memory.track_external(model, adam, images, labels, weights)
    with memory:
        once()
    theirs = memory.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]
    timeline = trace.timeline(8)
    ours = (timeline.total - timeline.live[Category.ROUNDING]).max()
    assert ours == pytest.approx(theirs, rel=1e-4)


def test_the_second_step_has_states_and_no_gradients():
    timeline = simulate(resnet18, SMALL).timeline(4)
    parameters = 4 * sum(parameter.numel() for parameter in resnet18().parameters())
    assert timeline.live[Category.OPTIMIZER][0] == pytest.approx(2 * parameters, rel=1e-3)
    assert timeline.live[Category.GRADIENTS][0] == 0
    assert timeline.live[Category.GRADIENTS].max() == parameters
    kept = simulate(resnet18, replace(SMALL, gradients_kept=True)).timeline(4)
    assert kept.live[Category.GRADIENTS].min() == parameters
    assert [name for _, name in kept.phases] == ["forward", "backward", "optimizer"]


@pytest.mark.parametrize("step", [SMALL, replace(SMALL, precision="bf16", policy=by_block(9))], ids=["plain", "block"])
def test_a_step_is_the_same_after_others(step):
    """One network is recorded under every policy in turn: nothing of an earlier one is left."""
    simulator = Simulator(resnet18)
    for earlier in (replace(SMALL, policy=Policy("nested", ((0, 9),), nested=True)), replace(SMALL, precision="bf16")):
        simulator.record(earlier)
    alone, later = simulate(resnet18, step).timeline(8), simulator.record(step).timeline(8)
    # torch empties its cache of casts in the order of a hash map by address: no two runs free them alike.
    shuffled = [Category.AUTOCAST, Category.ROUNDING]
    assert (numpy.delete(later.live, shuffled, axis=0) == numpy.delete(alone.live, shuffled, axis=0)).all()
    assert (later.live.max(axis=1) == alone.live.max(axis=1)).all()
    assert later.total.max() == alone.total.max()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("policy", [Policy(), by_block(9)], ids=lambda policy: policy.kind)
def test_gradients_that_are_kept_are_read_off_the_same_record(policy, precision):
    step = replace(SMALL, precision=precision, policy=policy)
    derived = simulate(resnet18, step).with_gradients_kept()
    recorded = simulate(resnet18, replace(step, gradients_kept=True))
    for batch in (1, 64, 1024):
        assert derived.peak(batch) == pytest.approx(recorded.peak(batch), rel=1e-3)
        assert derived.timeline(batch).peak_phase == recorded.timeline(batch).peak_phase
    assert derived.saved(64) == recorded.saved(64)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_average_of_the_weights_as_counted_on_real_tensors(precision):
    """A copy of parameters and buffers, there over the whole step, and an update without memory of its own."""
    step = replace(SMALL, precision=precision, optim=OptimConfig(ema=0.99))
    predicted, plain = simulate(resnet18, step), simulate(resnet18, replace(step, optim=OptimConfig()))
    model = resnet18().to(memory_format=torch.channels_last).train()
    stepper = Stepper(model, step.optim)
    counted = stepper.record(step, 4, Tracker())
    assert predicted.peak(4) == counted.peak(4) and predicted.saved(4) == counted.saved(4)
    copy = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    for timeline in (predicted.timeline(4), counted.timeline(4)):
        assert set(timeline.live[Category.AVERAGE]) == {copy}
    grown = predicted.timeline(4).total - predicted.timeline(4).live[Category.ROUNDING]
    before = plain.timeline(4).total - plain.timeline(4).live[Category.ROUNDING]
    assert grown.max() - before.max() == copy
    assert (predicted.operators.names[-2:], stepper.average.updates) == (["_foreach_lerp_", "_foreach_copy_"], 2)
    with torch.profiler.profile(profile_memory=True) as profile:  # what operators allocate within themselves
        stepper.average.update()
    assert {event.key for event in profile.key_averages()} >= {"aten::_foreach_lerp_", "aten::_foreach_copy_"}
    assert sum(max(0, event.self_cpu_memory_usage) for event in profile.key_averages()) == 0


SHARP = OptimConfig(sam=0.05)
PHASES = ["forward", "backward", "ascent", "forward again", "backward again", "optimizer"]


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_a_step_of_two_passes_as_counted_on_real_tensors(precision):
    """SAM: a copy of parameters and buffers over the whole step, and the same activations once a pass."""
    step = replace(SMALL, precision=precision, optim=SHARP)
    predicted, plain = simulate(resnet18, step), simulate(resnet18, replace(step, optim=OptimConfig()))
    model = resnet18().to(memory_format=torch.channels_last).train()
    counted = Stepper(model, step.optim).record(step, 4, Tracker())
    assert predicted.peak(4) == counted.peak(4)
    assert predicted.saved(4) == counted.saved(4) == plain.saved(4)
    copy = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    ascents = []
    for timeline in (predicted.timeline(4), counted.timeline(4)):
        assert set(timeline.live[Category.KEPT]) == {copy}
        assert [name for _, name in timeline.phases] == PHASES
        begins = dict(zip(PHASES, (first for first, _ in timeline.phases), strict=True))
        ascents.append(timeline.total[begins["ascent"] : begins["forward again"]])
    assert (ascents[0] == ascents[1]).all() and ascents[0][-1] < ascents[0][0]  # the norm's scalars; gradients go
    unrounded = [trace.timeline(4).total - trace.timeline(4).live[Category.ROUNDING] for trace in (predicted, plain)]
    assert unrounded[0].max() - unrounded[1].max() - copy == 8  # the first pass's loss and hits
    assert [unit.__dict__ for unit in predicted.units] == [unit.__dict__ for unit in plain.units]
    # twice the arithmetic, and once a step what is done between and after the passes
    flops = [trace.operators.flops.at(4) for trace in (predicted, plain)]
    assert flops[0].sum() == 2 * flops[1].sum() and flops[0][predicted.operators.once].sum() == 0
    once = [name for name, once in zip(predicted.operators.names, predicted.operators.once, strict=True) if once]
    assert once.count("_foreach_copy_") == 4  # two dtypes, there and back
    assert once.count("_foreach_norm") == once.count("_foreach_mul_") == 1 and "_fused_adam_" in once


@pytest.mark.parametrize(
    ("policy", "precision"),
    [
        (by_block(9), "bf16"),
        *(pytest.param(policy, "fp32", marks=pytest.mark.slow) for policy in (Policy(), by_block(9))),
    ],
    ids=lambda value: getattr(value, "kind", value),
)
def test_two_passes_add_to_the_same_gradients(policy, precision):
    step = replace(SMALL, precision=precision, policy=policy, optim=SHARP)
    derived = simulate(resnet18, step).with_gradients_kept()
    recorded = simulate(resnet18, replace(step, gradients_kept=True))
    parameters = 4 * sum(parameter.numel() for parameter in resnet18().parameters())
    for timeline in (derived.timeline(64), recorded.timeline(64)):
        assert set(timeline.live[Category.GRADIENTS]) == {parameters}
        assert [name for _, name in timeline.phases] == PHASES
    for batch in (1, 64, 1024):
        assert derived.peak(batch) == pytest.approx(recorded.peak(batch), rel=1e-3)
    assert derived.saved(64) == recorded.saved(64)


def test_half_precision_keeps_half_and_copies_of_weights():
    full, half = simulate(resnet18, SMALL), simulate(resnet18, replace(SMALL, precision="bf16"))
    assert 0.5 <= half.saved(64) / full.saved(64) < 0.55
    convolutions = sum(module.weight.numel() for module in resnet18().modules() if isinstance(module, nn.Conv2d))
    assert half.timeline(64).live[Category.AUTOCAST].max() == pytest.approx(2 * convolutions, rel=0.01)
    assert simulate(resnet18, replace(SMALL, precision="fp16")).peak(64) == half.peak(64)


def test_units_are_the_blocks_and_taps_end_segments():
    trace = simulate(partial(archs.build, "inceptionv3", 10), Step(75, 10))
    units = trace.units
    assert len(units) == len(list(archs.build("inceptionv3", 10).blocks()))
    assert [index for index, unit in enumerate(units) if unit.tapped] == [14]  # the grid the auxiliary head hangs on
    plain = sum(unit.inner + unit.output for unit in units) * 8
    assert plain == pytest.approx(trace.saved(8), rel=0.1)
    pools = [index for index, unit in enumerate(units) if unit.flops == 0]
    assert pools == [3, 6]  # the stem's


def test_recompute_costs_a_forward_pass():
    plain = simulate(resnet18, SMALL).operators
    block = simulate(resnet18, replace(SMALL, policy=by_block(9))).operators
    gain = block.flops.at(8).sum() / plain.flops.at(8).sum()
    assert 1.2 < gain < 1.4


def test_gpu_side_adds_workspaces_and_reserves():
    plain, cuda = simulate(resnet18, SMALL), simulate(resnet18, SMALL, CudaModel())
    maps = archs.cost.convolution_outputs(resnet18(), 32, 32) * 64
    assert cuda.saved(64) - plain.saved(64) == pytest.approx(maps / 8, rel=0.01)
    half = replace(SMALL, precision="bf16")
    fp16 = simulate(resnet18, half, CudaModel())
    assert fp16.saved(64) - simulate(resnet18, half).saved(64) == pytest.approx(maps / 8, rel=0.01)
    assert fp16.in_bf16().saved(64) == simulate(resnet18, half).saved(64)
    capped = cuda.timeline(64, cap=1 << 20).live[Category.WORKSPACE].max()
    assert capped == 1 << 20
    assert cuda.timeline(64, cap=1 << 62).live[Category.WORKSPACE].max() > capped


def test_recompute_runs_under_the_same_rules_as_the_forward_pass():
    """LayerNorm is fp32 under a GPU's autocast and 16-bit under a CPU's; checkpoint refuses another dtype."""
    build, step = partial(archs.build, "mixer_d12", 10, image_size=32), Step(32, 10, "bf16")
    plain, block = (simulate(build, replace(step, policy=policy)) for policy in (Policy(), by_block(6)))
    assert block.saved(64) < 0.8 * plain.saved(64)


def test_offloaded_activations_leave_the_device():
    plain = simulate(resnet18, SMALL)
    offloaded = simulate(resnet18, replace(SMALL, policy=Policy(offload=True)))
    assert plain.saved(4096) > 0.5 * plain.peak(4096)
    assert offloaded.saved(4096) < 0.01 * plain.saved(4096)
    assert offloaded.peak(4096) < 0.55 * plain.peak(4096)


def test_an_operator_without_a_rule_is_named():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3 * 64, 10)

        def forward(self, images):
            return self.fc(images.flatten(1)[images.flatten(1).sum(1) > float(images.sum().item())])

    with pytest.raises(Untraceable, match=r"aten\._local_scalar_dense"):
        simulate(Odd, Step(8, 10))


def test_a_network_is_whole_again_after_a_failed_step():
    simulator = Simulator(resnet18)
    with pytest.raises(Untraceable):
        simulator.record(replace(SMALL, num_classes=3, image_size=0))
    assert simulator.record(SMALL).peak(8) == simulate(resnet18, SMALL).peak(8)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_as_counted_on_real_tensors(name):
    """Its states and what its update holds for a moment."""
    build = partial(archs.build, "convnet_bn", 10)
    step = replace(SMALL, optim=OptimConfig(optimizer=name))
    predicted, model = simulate(build, step), build().to(memory_format=torch.channels_last).train()
    stepper = Stepper(model, step.optim)
    counted = stepper.record(step, 4, Tracker())
    assert predicted.peak(4) == counted.peak(4)
    begins = {phase: first for first, phase in predicted.timeline(4).phases}["optimizer"]
    update = [trace.timeline(4) for trace in (predicted, counted)]
    update = [(one.total - one.live[Category.ROUNDING])[begins:].max() for one in update]
    assert update[0] == update[1]
    kept = [value for state in stepper.optimizer.state.values() for value in state.values()]
    real = sum(value.nbytes for value in kept if torch.is_tensor(value) and value.ndim)
    assert 4 * state_elements(model, step.optim) == real
    scalars = 8 * len(list(model.parameters()))  # counts of steps, and NAdam's products
    assert real <= predicted.timeline(4).live[Category.OPTIMIZER][0] <= real + scalars


@pytest.mark.parametrize("loss", [{"loss": "bce", "bce_threshold": 0.2}, {"loss": "focal"}], ids=["bce", "focal"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_loss_as_counted_on_real_tensors(loss, precision):
    build = partial(archs.build, "convnet_bn", 10)
    step = replace(SMALL, precision=precision, optim=OptimConfig(**loss))
    predicted, model = simulate(build, step), build().to(memory_format=torch.channels_last).train()
    counted = Stepper(model, step.optim).record(step, 4, Tracker())
    assert predicted.peak(4) == counted.peak(4) and predicted.saved(4) == counted.saved(4)
