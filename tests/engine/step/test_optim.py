"""Learning-rate schedules and parameter groups."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from engine.config import ConfigError, OptimConfig
from engine.config.optimizers import OPTIMIZERS
from engine.step.optim import allocate_state, build_optimizer, parameter_groups, set_learning_rate, state_elements
from engine.step.schedule import learning_rate


def test_constant_rate():
    config = OptimConfig(lr=0.5, epochs=2)
    assert {learning_rate(step, 5, config) for step in range(10)} == {0.5}


def test_warmup_rises_linearly_then_cosine_falls_to_zero():
    config = OptimConfig(lr=1.0, epochs=10, schedule="cosine", warmup_epochs=2)
    rates = [learning_rate(step, 5, config) for step in range(50)]
    assert rates[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert rates[10] == 1.0
    assert rates[30] == pytest.approx(0.5)
    assert all(later < earlier for earlier, later in pairwise(rates[10:]))
    assert 0 < rates[-1] < 0.01


def test_biases_and_norms_are_not_decayed():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    decayed, plain = parameter_groups(model, 0.1)
    assert {parameter.ndim for parameter in decayed["params"]} == {2, 4} and decayed["weight_decay"] == 0.1
    assert len(plain["params"]) == 4 and plain["weight_decay"] == 0.0


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_states_are_as_large_as_they_are_said_to_be(name):
    """What the planner counts under ZeRO, and a run's lines say; Muon keeps one number for matrices' and two else."""
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 16, 3, groups=16), nn.Linear(16, 8))
    config = OptimConfig(optimizer=name)
    optimizer = build_optimizer(model, config)
    allocate_state(optimizer)
    sizes = [value.numel() for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert sum(size for size in sizes if size > 1) == state_elements(model, config)
    assert (state_elements(model, config) == OPTIMIZERS[name].states * parameters) == (name != "muon")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_state_that_is_loaded_goes_on_bit_for_bit(name):
    def steps(model, optimizer, seeds):
        for seed in seeds:
            optimizer.zero_grad()
            model(torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))).square().mean().backward()
            optimizer.step()

    torch.manual_seed(0)
    whole, first, second = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
    first.load_state_dict(whole.state_dict())
    config = OptimConfig(optimizer=name, lr=0.01)
    undisturbed, before = build_optimizer(whole, config), build_optimizer(first, config)
    steps(whole, undisturbed, range(10))
    steps(first, before, range(5))
    second.load_state_dict(first.state_dict())
    after = build_optimizer(second, config)
    allocate_state(after)
    after.load_state_dict(before.state_dict())
    steps(second, after, range(5, 10))
    assert torch.equal(whole.weight, second.weight) and torch.equal(whole.bias, second.bias)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"alpha": 0.9}, "--optim.alpha has no effect on --optimizer adam; it is for rmsprop"),
        ({"nesterov": False}, "--optim.no-nesterov has no effect on --optimizer adam; it is for sgd"),
        ({"optimizer": "sgd", "betas": (0.9, 0.99)}, "--optim.betas has no effect on --optimizer sgd"),
        ({"optimizer": "sgd", "eps": 1e-3}, "--optim.eps has no effect on --optimizer sgd"),
        ({"betas": (0.9, 1.0)}, "--optim.betas must be in"),
        ({"optimizer": "adan", "betas": (0.9, 0.9)}, "--optim.betas: adan has 3 of them, not 2"),
        ({"optimizer": "lion", "eps": 1e-3}, "--optim.eps has no effect on --optimizer lion"),
        ({"optimizer": "schedule-free", "schedule": "cosine"}, "takes the place of a schedule"),
        ({"optimizer": "schedule-free", "ema": 0.99}, "keeps an average of the weights itself"),
        ({"optimizer": "schedule-free-sgd", "momentum": 0.0}, "needs an --optim.momentum above 0"),
        ({"optimizer": "rmsprop", "alpha": 1.0}, "--optim.alpha must be in"),
        ({"eps": 0.0}, "--optim.eps must be above 0"),
    ],
)
def test_a_field_that_the_optimizer_does_not_read_is_refused(fields, told):
    with pytest.raises(ConfigError, match=told):
        OptimConfig(**fields)


def test_set_learning_rate_reaches_every_group():
    optimizer = build_optimizer(nn.Linear(2, 2), OptimConfig())
    set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_allocated_ahead_changes_no_step(name):
    """Everything is there before the first step, which is bit for bit what it is without."""
    torch.manual_seed(0)
    ours, theirs = nn.Linear(3, 3), nn.Linear(3, 3)
    theirs.load_state_dict(ours.state_dict())
    config = OptimConfig(optimizer=name, lr=0.1, momentum=0.9, weight_decay=0.3)
    ahead, plain = build_optimizer(ours, config), build_optimizer(theirs, config)
    allocate_state(ahead)
    kept = {id(tensor) for state in ahead.state.values() for tensor in state.values() if torch.is_tensor(tensor)}
    assert all(parameter.grad is None for parameter in ours.parameters())
    assert [group["lr"] for group in ahead.param_groups] == [0.1, 0.1]
    for seed in range(3):
        images = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))
        for model, optimizer in ((ours, ahead), (theirs, plain)):
            optimizer.zero_grad()
            model(images).square().mean().backward()
            optimizer.step()
    assert torch.equal(ours.weight, theirs.weight) and torch.equal(ours.bias, theirs.bias)
    for mine, other in zip(ahead.state.values(), plain.state.values(), strict=True):
        assert mine.keys() == other.keys()
        for key, value in mine.items():
            replaced = name == "adan" and key == "neg_pre_grad"  # timm's makes it anew in the first step
            assert not torch.is_tensor(value) or (torch.equal(value, other[key]) and (id(value) in kept or replaced))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_momentum_begins_at_zero_where_fp16_skips_the_first_step():
    """torch's fused SGD leaves it as the memory was: made ahead, the second step moves by its own gradient alone."""
    parameter = torch.nn.Parameter(torch.ones(1000, device="cuda"))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9, fused=True)
    allocate_state(optimizer)
    scaler = torch.amp.GradScaler("cuda")
    for gradient in (float("inf"), 1.0):
        dirty = torch.full((1000,), 1e30, device="cuda")  # what the next block of this size would hold
        del dirty
        scaler.scale(parameter.sum()).backward()
        parameter.grad.mul_(gradient)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert torch.allclose(parameter, torch.full_like(parameter, 0.9))
