"""The moving average of the weights: its arithmetic, and what the trainer evaluates, keeps and resumes."""

import os
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from engine.config import ConfigError, LogConfig, OptimConfig
from engine.plan.run_plan import halvings
from engine.recovery.checkpoint import checkpoint_to_resume
from engine.step.ema import WeightAverage
from tests.engine.conftest import TinyNet, rescue_of
from tests.engine.recovery.test_rescue import Failing, Net
from tests.engine.train.test_trainer import StopAfter, assert_same, rows, weights

EMA = OptimConfig(epochs=3, batch_size=16, lr=0.01, ema=0.9)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 2))


def move(model: nn.Module) -> None:
    """Other weights, statistics and counters, as after a step."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
        model(torch.randn(5, 3, 6, 6))


def averaged(trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.average.state_dict()["tensors"].items()}


def test_the_formula_with_its_warm_up():
    """Against the recurrence in fp64, past the warm-up's end: (1 + n) / (10 + n) reaches 0.75 at n = 26."""
    model = network()
    average = WeightAverage(model, 0.75)
    expected = {name: tensor.double() for name, tensor in model.state_dict().items()}
    for n in range(30):
        move(model)
        average.update()
        decay = min(0.75, (1 + n) / (10 + n))
        for name, tensor in model.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * tensor.double()
    held = average.state_dict()["tensors"]
    assert held["1.num_batches_tracked"].item() == 30
    for name in expected.keys() - {"1.num_batches_tracked"}:
        torch.testing.assert_close(held[name].double(), expected[name], rtol=1e-5, atol=1e-6)


def test_inside_the_network_has_the_average_and_afterwards_its_own_weights():
    model = network().to(memory_format=torch.channels_last)
    average = WeightAverage(model, 0.9)
    for _ in range(3):
        move(model)
        average.update()
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    mean = {name: tensor.clone() for name, tensor in average.state_dict()["tensors"].items()}
    addresses = [tensor.data_ptr() for tensor in model.state_dict().values()]
    with pytest.raises(KeyError), average.in_place():
        assert torch.is_grad_enabled()
        assert_same(mean, model.state_dict())
        raise KeyError("an evaluation that fails")
    assert_same(own, model.state_dict())
    assert_same(mean, average.state_dict()["tensors"])
    assert addresses == [tensor.data_ptr() for tensor in model.state_dict().values()]
    assert not torch.equal(own["0.weight"], mean["0.weight"])


class Stepped:
    """An optimizer with what accelerate's adds; the scaler leaves the overflow of a fused one on the device."""

    def __init__(self, model: nn.Module) -> None:
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
        self.param_groups, self.step_was_skipped = self.optimizer.param_groups, False


def test_a_step_that_overflowed_is_not_averaged():
    model, reference = network(), network()
    average, counted = WeightAverage(model, 0.9), WeightAverage(reference, 0.9)
    stepped, scaler = Stepped(model), torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=2)
    for overflow in (False, True, False, True, True, False, False, False):
        with average.follow(stepped, scaler):
            loss = model(torch.randn(5, 3, 6, 6)).square().sum()
            scaler.scale(loss * (float("inf") if overflow else 1.0)).backward()
            scaler.step(stepped.optimizer)
            scaler.update()
            stepped.optimizer.zero_grad()
        if not overflow:
            reference.load_state_dict(model.state_dict())
            counted.update()
    state = average.state_dict()
    assert state["updates"] == counted.updates == 5
    for name, tensor in counted.state_dict()["tensors"].items():
        assert tensor.isfinite().all()
        torch.testing.assert_close(state["tensors"][name], tensor, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("made", [None, torch.tensor(True)], ids=["made", "perhaps skipped"])
def test_an_update_does_not_look_at_the_device(made, monkeypatch):
    average = WeightAverage(network(), 0.9)
    average.update(made)
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, lambda *_, name=name: pytest.fail(f"{name} waits for the device"))
    average.update(made)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("scaled", [False, True])
def test_an_update_does_not_wait_for_a_gpu(scaled):
    """CUDA itself reports every synchronisation: torch.cuda.set_sync_debug_mode."""
    model = network().cuda()
    average, stepped = WeightAverage(model, 0.9), Stepped(model)
    scaler = torch.amp.GradScaler("cuda") if scaled else None
    for mode in ("default", "error"):  # the first update sets things up
        torch.cuda.set_sync_debug_mode(mode)
        try:
            with average.follow(stepped, scaler):
                pass
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert average.state_dict()["updates"] == 2


def test_a_step_that_the_optimizer_says_it_skipped_is_not_averaged():
    model = network()
    average, stepped = WeightAverage(model, 0.9), Stepped(model)
    stepped.step_was_skipped = True
    with average.follow(stepped, None):
        pass
    assert average.updates == 0


def test_training_is_as_without_and_the_average_is_kept(make_trainer):
    plain = make_trainer("plain")
    plain.fit()
    trainer = make_trainer("averaged", optim=EMA, log=LogConfig(every=2, save_best=False))
    trainer.fit()
    assert_same(weights(plain), weights(trainer))
    assert trainer.average.updates == trainer.progress.step == 9
    assert_same(averaged(trainer), load_file(trainer.folder.weights))
    assert not torch.equal(averaged(trainer)["stem.weight"], weights(trainer)["stem.weight"])
    # what is evaluated is what is kept
    trainer.model.load_state_dict(load_file(trainer.folder.weights))
    trainer.average = None
    assert rows(trainer, "epoch")[-1]["val_loss"] == trainer.evaluate().loss
    assert rows(trainer, "epoch")[-1]["val_loss"] != rows(plain, "epoch")[-1]["val_loss"]


@pytest.mark.parametrize("options", [{}, {"micro": 8}, {"recompute": "block"}], ids=["whole", "split", "recompute"])
def test_stopped_and_resumed_equals_never_stopped(make_trainer, options):
    """Bit for bit; a micro-batch is no step."""
    whole = make_trainer("whole", optim=EMA, **options)
    whole.fit()
    first = make_trainer("parts", optim=EMA, **options)
    first.train_loader = StopAfter(first.train_loader, 1, 1)
    with first.interrupt:
        first.fit()
    second = make_trainer("parts", optim=EMA, **options)
    second.resume(checkpoint_to_resume(second.folder.path, second.folder.checkpoints))
    assert second.average.updates == second.progress.step == 5
    second.fit()
    assert_same(weights(whole), weights(second))
    assert_same(averaged(whole), averaged(second))
    assert_same(load_file(whole.folder.weights), load_file(second.folder.weights))
    assert [row["val_loss"] for row in rows(whole, "epoch")] == [row["val_loss"] for row in rows(second, "epoch")]
    assert whole.average.updates == second.average.updates == 9


def test_a_checkpoint_without_an_average_is_refused(make_trainer):
    first = make_trainer("a", optim=replace(EMA, ema=0.0))
    first.fit()
    with pytest.raises(ConfigError, match=r"optim\.ema 0\.0 -> 0\.9"):
        make_trainer("b", optim=EMA).resume(first.checkpointer.last)


def test_a_step_repeated_for_memory_counts_once(make_trainer):
    torch.manual_seed(0)
    model = Net()
    trainer = make_trainer(model=model, optim=EMA)
    trainer.rescue = rescue_of(trainer, halvings(trainer.plan))
    Failing(model, "backward", {2})
    trainer.fit()
    assert len(trainer.rescue.events) == 1
    assert trainer.average.updates == trainer.progress.step == 9


@pytest.mark.slow
def test_compiled_graphs_see_the_average(make_trainer):
    """Evaluated by the graphs that were compiled for the weights themselves."""
    trainer = make_trainer(optim=EMA, compile="on")
    trainer.fit()
    eager = TinyNet().eval()
    eager.load_state_dict(averaged(trainer))
    images, labels = trainer.val_loader.images, trainer.val_loader.labels
    expected = nn.functional.cross_entropy(eager(images), labels).item()
    assert trainer.evaluate().loss == pytest.approx(expected, rel=1e-5)
    assert own_loss(trainer) != pytest.approx(expected, rel=1e-3)


def own_loss(trainer) -> float:
    """The loss of the weights themselves."""
    average, trainer.average = trainer.average, None
    try:
        return trainer.evaluate().loss
    finally:
        trainer.average = average


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(ConfigError, match=r"--optim.ema must be 0 \(off\) or a decay between 0 and 1"):
        OptimConfig(ema=decay)


def test_refused_where_parameters_are_not_whole_or_not_fp32():
    OptimConfig(ema=0.9).refuse_deepspeed(2)
    with pytest.raises(ConfigError, match=r"--optim\.ema needs whole parameters.*ZeRO-2"):
        OptimConfig(ema=0.9).refuse_deepspeed(3)
    with pytest.raises(ConfigError, match="needs fp32 parameters, and weight"):
        WeightAverage(nn.Linear(1, 1).bfloat16(), 0.9)


def two_ranks(rank: int, port: int, folder: str) -> None:
    """Average on one of two gloo ranks whose parameters are equal and whose statistics are not."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    torch.distributed.init_process_group("gloo")
    model = nn.BatchNorm1d(3)
    average = WeightAverage(model, 0.9)
    with torch.no_grad():
        model.weight.fill_(5.0)
        model.running_mean.fill_(float(rank))
    average.update()
    with average.in_place():
        torch.save(model.state_dict(), f"{folder}/{rank}.pt")
    assert model.running_mean.tolist() == [float(rank)] * 3
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.distributed
def test_ranks_evaluate_the_same_statistics(tmp_path, free_port):
    torch.multiprocessing.start_processes(two_ranks, (free_port, str(tmp_path)), nprocs=2, start_method="spawn")
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert_same(first, second)
    assert first["running_mean"].tolist() == [0.0] * 3 and first["weight"].tolist() == pytest.approx([4.6] * 3)
