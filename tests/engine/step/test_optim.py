"""Learning-rate schedules and parameter groups."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from engine.config import ConfigError, OptimConfig
from engine.config.optimizers import OPTIMIZERS
from engine.step.optim import allocate_state, build_optimizer, parameter_groups, set_learning_rate
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


OPTIONS = {
    "sgd": (torch.optim.SGD, {}, {"momentum": 0.9, "nesterov": True}),
    "sgd plain": (torch.optim.SGD, {"momentum": 0.0}, {}),
    "sgd heavy ball": (torch.optim.SGD, {"nesterov": False}, {"momentum": 0.9}),
    "adam": (torch.optim.Adam, {}, {}),
    "adamw": (torch.optim.AdamW, {"betas": (0.8, 0.95), "eps": 1e-4}, {"betas": (0.8, 0.95), "eps": 1e-4}),
    "rmsprop": (torch.optim.RMSprop, {"alpha": 0.9, "eps": 1e-3}, {"alpha": 0.9, "eps": 1e-3, "momentum": 0.9}),
    "rmsprop plain": (torch.optim.RMSprop, {"momentum": 0.0}, {}),
}


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_optimizers_match_torchs_plain_ones(name, ahead):
    """The fused update is torch's own, so 50 steps equal the single-tensor ones, the state made ahead or not."""
    kind, fields, options = OPTIONS[name]
    ours, theirs = nn.Linear(3, 3).double(), nn.Linear(3, 3).double()
    theirs.load_state_dict(ours.state_dict())
    mine = build_optimizer(ours, OptimConfig(optimizer=name.split()[0], lr=0.01, weight_decay=0.1, **fields))
    groups = [{"params": [theirs.weight], "weight_decay": 0.1}, {"params": [theirs.bias], "weight_decay": 0.0}]
    plain = {} if kind is torch.optim.RMSprop else {"fused": False}
    reference = kind(groups, lr=0.01, foreach=False, **plain, **options)
    if ahead:
        allocate_state(mine)
    for seed in range(50):
        images = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for model, optimizer in ((ours, mine), (theirs, reference)):
            optimizer.zero_grad()
            model(images).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_states_are_as_large_as_the_table_says(name):
    """fp32 tensors of the parameters' size: what the planner counts under ZeRO, and a run's lines say."""
    model = nn.Linear(64, 64)
    optimizer = build_optimizer(model, OptimConfig(optimizer=name))
    allocate_state(optimizer)
    sizes = [value.numel() for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    large = sum(size for size in sizes if size > 1)
    assert large == OPTIMIZERS[name].states * sum(parameter.numel() for parameter in model.parameters())


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
            assert torch.equal(value, other[key]) and id(value) in kept, key


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
