"""Sharpness-aware minimisation: the update against one written out here, and what a step leaves as it was."""

import json
import os
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from engine.config import ConfigError, LogConfig, OptimConfig, RunConfig
from engine.plan.command import run_plan
from engine.plan.request import parse
from engine.plan.run_plan import halvings
from engine.recovery.checkpoint import checkpoint_to_resume
from engine.recovery.relaunch import Relaunch
from engine.recovery.rescue import MemoryExhausted
from engine.step.sam import SharpnessAware
from engine.train.session import Session
from tests.engine.conftest import MadeLoader, TinyNet, rescue_of
from tests.engine.recovery import test_rescue_ranks
from tests.engine.recovery.test_rescue import Failing, Net
from tests.engine.train.test_trainer import StopAfter, assert_same, rows, weights

RHO = 0.5
SGD = OptimConfig(epochs=2, batch_size=15, lr=0.05, optimizer="sgd", weight_decay=0.01, sam=RHO)
ADAMW = replace(SGD, optimizer="adamw", lr=0.01)


def written_out(optim: OptimConfig, clip: float = 0.0) -> dict[str, torch.Tensor]:
    """The weights after a run: algorithm 1 on whole batches, with torch's own optimizer and nothing of the trainer."""
    torch.manual_seed(0)
    model = TinyNet(norm=False, dropout=0.0)
    parameters = list(model.parameters())
    groups = [
        {"params": [one for one in parameters if one.ndim > 1], "weight_decay": optim.weight_decay},
        {"params": [one for one in parameters if one.ndim <= 1], "weight_decay": 0.0},
    ]
    if optim.optimizer == "sgd":
        base: torch.optim.Optimizer = torch.optim.SGD(groups, optim.lr, momentum=optim.momentum, nesterov=True)
    else:
        base = torch.optim.AdamW(groups, optim.lr)
    for epoch in range(optim.epochs):
        for batch in MadeLoader(44, optim.batch_size, shuffle=True).epoch(epoch):
            at = [parameter.detach().clone() for parameter in parameters]
            gradients = torch.autograd.grad(F.cross_entropy(model(batch.images), batch.labels), parameters)
            length = torch.cat([one.flatten() for one in gradients]).norm()
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter += optim.sam * gradient / length
            base.zero_grad()
            F.cross_entropy(model(batch.images), batch.labels).backward()
            with torch.no_grad():
                for parameter, before in zip(parameters, at, strict=True):
                    parameter.copy_(before)
            if clip:
                nn.utils.clip_grad_norm_(parameters, clip)
            base.step()
    return model.state_dict()


@pytest.mark.parametrize("micro", [0, 5], ids=["one micro-batch", "three"])
@pytest.mark.parametrize("optim", [SGD, ADAMW], ids=lambda optim: optim.optimizer)
def test_the_update_is_algorithm_1(make_trainer, optim, micro):
    torch.manual_seed(0)
    trainer = make_trainer(model=TinyNet(norm=False, dropout=0.0), optim=optim, micro=micro)
    assert trainer.plan.accumulation == (3 if micro else 1)
    trainer.fit()
    expected, plain = written_out(optim), written_out(replace(optim, sam=0.0))
    for name, tensor in weights(trainer).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=2e-6)
    assert max((expected[name] - plain[name]).abs().max() for name in plain) > 1e-3


def test_the_second_gradient_is_the_one_that_is_clipped(make_trainer):
    optim = replace(SGD, clip_norm=0.05)
    torch.manual_seed(0)
    trainer = make_trainer(model=TinyNet(norm=False, dropout=0.0), optim=optim)
    trainer.fit()
    expected, unclipped = written_out(optim, clip=0.05), written_out(optim)
    for name, tensor in weights(trainer).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=2e-6)
    assert max((expected[name] - unclipped[name]).abs().max() for name in expected) > 1e-3


@pytest.mark.parametrize("micro", [0, 5], ids=["one micro-batch", "three"])
def test_statistics_and_what_is_counted_are_an_ordinary_steps(make_trainer, micro):
    """Bit for bit: both are of the pass at the weights themselves."""
    states, told = [], []
    for rho in (0.0, RHO):
        torch.manual_seed(0)
        optim = replace(SGD, epochs=1, sam=rho)
        trainer = make_trainer(f"{rho}", TinyNet(dropout=0.0), 15, optim, micro, LogConfig(every=1))
        trainer.fit()
        assert trainer.progress.step == 1
        states.append(weights(trainer))
        told.append([(row["loss"], row["accuracy"]) for row in rows(trainer, "step")])
    plain, sharp = states
    assert plain["norm.num_batches_tracked"].item() == (3 if micro else 1)
    for name in ("norm.running_mean", "norm.running_var", "norm.num_batches_tracked"):
        assert torch.equal(plain[name], sharp[name]), name
    assert not torch.equal(plain["stem.weight"], sharp["stem.weight"])
    assert told[0] == told[1]


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 2))
    return model.to(memory_format=torch.channels_last)


def backward(model: nn.Module, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(1)
    (model(torch.randn(5, 3, 6, 6, generator=generator)).square().mean() * scale).backward()


def test_inside_the_weights_are_rho_away_and_afterwards_where_they_were():
    model = network()
    sam = SharpnessAware(model, RHO)
    backward(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    addresses = [tensor.data_ptr() for tensor in model.state_dict().values()]
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    with pytest.raises(KeyError), sam.moved():
        steps = [parameter.detach() - before[name] for name, parameter in model.named_parameters()]
        length = torch.cat([step.flatten() for step in steps]).norm().item()
        assert length == pytest.approx(RHO, rel=1e-5)
        inner = sum((step * gradient).sum() for step, gradient in zip(steps, gradients, strict=True))
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
        assert inner.item() == pytest.approx(RHO * norm.item(), rel=1e-5)
        model.zero_grad()
        backward(model)
        assert not torch.equal(model[1].running_mean, before["1.running_mean"])
        raise KeyError("a second pass that fails")
    assert_same(before, model.state_dict())
    assert addresses == [tensor.data_ptr() for tensor in model.state_dict().values()]


def test_a_loss_scale_cancels_and_no_gradient_moves_nothing():
    places = []
    for scale in (1.0, 1024.0, 0.0):
        model = network()
        sam, own = SharpnessAware(model, RHO), model[0].weight.detach().clone()
        backward(model, scale)
        with sam.moved():
            places.append(model[0].weight.detach().clone())
    assert torch.equal(places[0], places[1]) and not torch.equal(places[0], own)
    assert torch.equal(places[2], own)


@pytest.mark.parametrize("wrong", [float("inf"), float("nan")])
def test_a_gradient_that_is_not_finite_spoils_the_second_one_for_certain(wrong):
    """All weights: an activation may swallow the NaN of one, and none follows the last."""
    model = network()
    sam = SharpnessAware(model, RHO)
    backward(model)
    model[0].weight.grad[0, 0, 0, 0] = wrong
    with sam.moved():
        assert all(parameter.isnan().all() for parameter in model.parameters())
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("overflow", [0, 1, 2], ids=["no overflow", "in the first pass", "in the second pass"])
def test_an_overflow_in_either_pass_skips_the_step(overflow):
    """The loss scale's own check, which looks at the second gradient alone, and leaves the answer on the device."""
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    scaler, sam = torch.amp.GradScaler("cpu", init_scale=256.0), SharpnessAware(model, RHO)

    def a_pass(number: int) -> None:
        loss = model(torch.randn(5, 3, 6, 6)).square().mean()
        scaler.scale(loss * (float("inf") if overflow == number else 1.0)).backward()

    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    a_pass(1)
    with sam.moved():
        optimizer.zero_grad()
        a_pass(2)
    scaler.step(optimizer)
    scaler.update()
    after = dict(model.named_parameters())
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    assert all(torch.equal(before[name], after[name]) == (overflow > 0) for name in before)
    assert scaler.get_scale() == (128.0 if overflow else 256.0)


def test_moving_does_not_look_at_the_device(monkeypatch):
    model = network()
    sam = SharpnessAware(model, RHO)
    backward(model)
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, lambda *_, name=name: pytest.fail(f"{name} waits for the device"))
    with sam.moved():
        pass


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_moving_does_not_wait_for_a_gpu():
    """CUDA itself reports every synchronisation: torch.cuda.set_sync_debug_mode."""
    model = network().cuda()
    sam = SharpnessAware(model, RHO)
    model(torch.randn(5, 3, 6, 6, device="cuda")).square().mean().backward()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for mode in ("default", "error"):  # the first one sets things up
        torch.cuda.set_sync_debug_mode(mode)
        try:
            with sam.moved():
                pass
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert_same(before, model.state_dict())


@pytest.mark.parametrize("options", [{}, {"micro": 8, "recompute": "block"}], ids=["whole", "split"])
def test_stopped_and_resumed_equals_never_stopped(make_trainer, options):
    """Bit for bit, with dropout, BatchNorm and an average of the weights."""
    options = {"optim": OptimConfig(epochs=2, batch_size=16, lr=0.01, ema=0.9, sam=RHO), **options}
    whole = make_trainer("whole", **options)
    whole.fit()
    first = make_trainer("parts", **options)
    first.train_loader = StopAfter(first.train_loader, 1, 1)
    with first.interrupt:
        first.fit()
    assert first.progress.step == 5
    second = make_trainer("parts", **options)
    second.resume(checkpoint_to_resume(second.folder.path, second.folder.checkpoints))
    second.fit()
    assert_same(weights(whole), weights(second))
    assert_same(whole.average.state_dict()["tensors"], second.average.state_dict()["tensors"])
    assert whole.average.updates == second.average.updates == whole.progress.step == 6
    assert [row["val_loss"] for row in rows(whole, "epoch")] == [row["val_loss"] for row in rows(second, "epoch")]


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_memory_that_runs_out_in_the_second_pass_leaves_the_weights(make_trainer, where):
    """Call 4 is the second step's second; there is no other plan."""
    torch.manual_seed(0)
    model = Net()
    trainer = make_trainer(model=model, optim=replace(SGD, batch_size=16))
    trainer.rescue = rescue_of(trainer)
    before: dict[str, torch.Tensor] = {}
    stepped = trainer.rescue.take

    def step(batch) -> None:
        before.update(weights(trainer))
        stepped(batch)

    trainer.rescue.take = step
    Failing(model, where, {4})
    with pytest.raises(MemoryExhausted, match="step 2"):
        trainer.fit()
    assert_same(before, weights(trainer))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_step_that_fails_in_its_second_pass_is_repeated_in_halves(make_trainer):
    """It is then that of a run which was planned in two micro-batches."""
    states = []
    for name, micro in (("rescued", 0), ("planned", 8)):
        torch.manual_seed(0)
        model = Net()
        trainer = make_trainer(name, model=model, optim=replace(SGD, batch_size=16), micro=micro)
        trainer.rescue = rescue_of(trainer, halvings(trainer.plan))
        if not micro:
            Failing(model, "backward", {2})
        trainer.fit()
        assert len(trainer.rescue.events) == (not micro)
        states.append(weights(trainer))
    assert_same(*states)


def two_sharp_ranks(rank: int, *arguments) -> None:
    """`two_ranks` with SAM."""
    test_rescue_ranks.OPTIM = replace(test_rescue_ranks.OPTIM, sam=RHO)
    test_rescue_ranks.two_ranks(rank, *arguments)


@pytest.mark.slow
@pytest.mark.distributed
def test_ranks_agree_on_a_second_pass_that_failed(tmp_path):
    """Calls 2 and 6 are the first and the third step's second pass: all ranks repeat the step and lose nothing."""
    ended = {}
    for call in (0, 2, 6):
        folder = tmp_path / f"{call}"
        folder.mkdir()
        failing = {"ranks": [1], "where": "backward", "call": call} if call else None
        arguments = test_rescue_ranks.unused_port(), failing, str(folder)
        torch.multiprocessing.start_processes(two_sharp_ranks, arguments, nprocs=2, start_method="spawn")
        ended[call] = [torch.load(folder / f"{rank}.pt") for rank in range(2)]
    for call, step in ((2, 1), (6, 3)):
        test_rescue_ranks.assert_rescued(ended[call], ended[0], step)


@pytest.mark.slow
def test_compiled_graphs_see_the_moved_weights(make_trainer):
    states = []
    for compiled in ("off", "on"):
        torch.manual_seed(0)
        trainer = make_trainer(compiled, TinyNet(dropout=0.0), optim=SGD, compile=compiled)
        trainer.fit()
        states.append(weights(trainer))
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("rho", [-0.05, float("inf"), float("nan")])
def test_a_radius_out_of_range_is_refused(rho):
    with pytest.raises(ConfigError, match=r"--optim.sam must be 0 \(off\) or a radius above 0"):
        OptimConfig(sam=rho)


def test_a_deepspeed_launch_is_refused_before_anything_is_built(monkeypatch, tmp_path):
    settings = tmp_path / "zero0.json"
    settings.write_text(json.dumps({"zero_optimization": {"stage": 0}}))
    monkeypatch.setitem(os.environ, "ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setitem(os.environ, "ACCELERATE_DEEPSPEED_CONFIG_FILE", str(settings))
    nothing = None  # neither source nor interrupt is looked at
    with pytest.raises(ConfigError, match=r"--optim.sam does not run under DeepSpeed, whose engine updates"):
        Session(RunConfig(optim=OptimConfig(sam=0.05)), nothing, nothing, Relaunch())


@pytest.mark.parametrize("more", [["--zero-stage", "2"], ["--zero-stage", "2", "--offload-optimizer"]])
def test_a_plan_for_deepspeed_is_refused(more, capsys):
    with pytest.raises(ConfigError, match=r"--optim.sam does not run under DeepSpeed"):
        run_plan(parse(["--arch", "resnet18", "--sam", "0.05", *more]), draw=lambda planned: None)
    assert capsys.readouterr().out == ""


def test_it_is_planned_for():
    assert parse(["--sam", "0.05"]).run_config().optim.sam == 0.05
