"""torch's own out-of-memory exception at chosen points: the step is repeated, no image is lost or counted twice."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from engine.config import LogConfig, OptimConfig
from engine.plan.run_plan import halvings
from engine.recovery.rescue import MemoryExhausted
from engine.step.recompute import Policy, by_block
from tests.engine.conftest import rescue_of


class Net(nn.Module):
    """BatchNorm, no dropout: the same images give the same step."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, 2)

    def blocks(self):
        yield self.stem

    def forward(self, images):
        return self.head(self.stem(images).mean(dim=(2, 3)))


class Tripwire(torch.autograd.Function):
    """The identity; calls `trip` in the backward pass."""

    @staticmethod
    def forward(ctx, tensor, trip):
        ctx.trip = trip
        return tensor.clone()

    @staticmethod
    def backward(ctx, gradient):
        ctx.trip("backward")
        return gradient, None


def plain_error() -> RuntimeError:
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")


def cuda_error(code: int, text: str) -> RuntimeError:
    """As the CUDA runtime's errors come."""
    error = torch.AcceleratorError(f"CUDA error: {text}\nCUDA kernel errors might be reported asynchronously")
    error.error_code = code
    return error


class Failing:
    """Raises `error()` at chosen calls, counted over the run: `forward` or `backward`, from 1."""

    def __init__(self, model: nn.Module, where: str, calls: set[int], error=plain_error) -> None:
        self.where, self.calls, self.count, self.error = where, calls, 0, error
        model.head.register_forward_pre_hook(self._hook)

    def _hook(self, module, inputs):
        if module.training:
            self.trip("forward")
        return (Tripwire.apply(inputs[0], self.trip),)

    def trip(self, where: str) -> None:
        if where == self.where:
            self.count += 1
            if self.count in self.calls:
                raise self.error()


def rows(trainer, kind: str) -> list[dict]:
    lines = trainer.folder.metrics.read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


OPTIM = OptimConfig(epochs=2, batch_size=16, lr=0.05, optimizer="sgd")


def state(trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def rescued(make_trainer, where: str, calls: set[int], ladder=None, **options):
    torch.manual_seed(0)
    model = Net()
    trainer = make_trainer("rescued", model=model, optim=OPTIM, log=LogConfig(every=1), **options)
    trainer.rescue = rescue_of(
        trainer,
        halvings(trainer.plan) if ladder is None else ladder(trainer.plan),
    )
    failing = Failing(model, where, calls)
    trainer.fit()
    return trainer, failing


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_step_is_repeated_in_halves_and_equals_one_planned_so(make_trainer, where):
    """The first step fails: all steps are then those of a run that was planned in two micro-batches."""
    trainer, _ = rescued(make_trainer, where, {1})
    torch.manual_seed(0)
    planned = make_trainer("planned", model=Net(), optim=OPTIM, micro=8, log=LogConfig(every=1))
    planned.fit()
    for name, tensor in state(planned).items():
        torch.testing.assert_close(state(trainer)[name], tensor, rtol=0, atol=0, msg=name)
    for left, right in zip(rows(trainer, "step"), rows(planned, "step"), strict=True):
        assert left["loss"] == pytest.approx(right["loss"], rel=1e-12)
    assert [row["train_images"] for row in rows(trainer, "epoch")] == [44, 44]
    (event,) = [row for row in rows(trainer, "event") if row["event"] == "out_of_memory"]
    assert event["step"] == 1 and event["micro_batch_size"] == 8 and event["accumulation"] == 2
    assert "Tried to allocate" in event["reason"] and "\n" not in event["reason"]
    assert json.loads((trainer.folder.path / "plan.json").read_text())["accumulation"] == 2


@pytest.mark.parametrize(("where", "call"), [("forward", 6), ("backward", 6), ("backward", 5)])
def test_failing_in_the_middle_of_a_split_step_counts_nothing_twice(make_trainer, where, call):
    """In two micro-batches a step; steps 1 and 2 succeed, step 3 fails in its first or its second micro-batch."""
    trainer, _ = rescued(make_trainer, where, {call}, micro=8)
    counters = [norm.num_batches_tracked.item() for norm in trainer.model.modules() if hasattr(norm, "running_mean")]
    # steps 1 and 2 (halves), then steps 3 to 6 in quarters
    assert counters == [2 * 2 + 4 * 4]
    assert [row["train_images"] for row in rows(trainer, "epoch")] == [44, 44]
    assert trainer.plan.micro_batch_size == 4 and trainer.progress.step == 6
    assert len(trainer.rescue.events) == 1


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (lambda: cuda_error(2, "out of memory"), "CUDA error: out of memory"),
        (
            lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        ),
    ],
    ids=["CUDA", "cuBLAS"],
)
def test_other_faces_of_memory_running_out_are_rescued(make_trainer, error, reason):
    trainer = make_trainer(model=Net(), optim=OPTIM)
    trainer.rescue = rescue_of(trainer, halvings(trainer.plan))
    Failing(trainer.model, "backward", {2}, error)
    trainer.fit()
    (event,) = trainer.rescue.events
    assert event["reason"] == reason and event["step"] == 2 and trainer.progress.step == 6


def test_an_error_that_ends_the_device_ends_the_run(make_trainer):
    trainer = make_trainer(model=Net(), optim=OPTIM)
    trainer.rescue = rescue_of(trainer, halvings(trainer.plan))
    Failing(trainer.model, "backward", {2}, lambda: cuda_error(700, "an illegal memory access was encountered"))
    with pytest.raises(torch.AcceleratorError, match="illegal memory access"):
        trainer.fit()
    assert not trainer.rescue.events


def test_again_and_again_until_nothing_is_left(make_trainer):
    with pytest.raises(MemoryExhausted, match=r"step 1.*Tried to allocate.*--gpu-memory"):
        rescued(make_trainer, "forward", set(range(1, 100)))


def test_state_that_does_not_fit_is_told_before_the_first_step(make_trainer, monkeypatch):
    trainer = make_trainer(model=Net(), optim=OPTIM)

    def fail() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    monkeypatch.setattr(trainer.optimizer.optimizer, "step", fail)
    with pytest.raises(MemoryExhausted, match=r"before the first step.*2\.00 GiB\.\)$"):
        trainer.fit()


@pytest.mark.parametrize(
    ("predicted", "flags"), [(0, "--parallel.micro-batch-size 8"), (2**30 + 1, "--gpu-memory 1025MiB")]
)
def test_a_run_that_cannot_change_its_plan_says_how_to_go_on(make_trainer, predicted, flags):
    """Under DeepSpeed: with the flags of the plan that would have been next."""
    trainer = make_trainer("sharded", model=Net(), optim=OPTIM)
    trainer.step.plan = replace(trainer.plan, zero_stage=2)
    after = halvings(trainer.plan)[0]
    trainer.rescue = rescue_of(trainer, (replace(after, predicted_peak_bytes=predicted),))
    Failing(trainer.model, "forward", {2})
    with pytest.raises(MemoryExhausted, match=f"step 2.*Go on with --resume {trainer.folder.path} {flags}$"):
        trainer.fit()


def test_the_next_plan_may_recompute_instead(make_trainer):
    def ladder(plan):
        return (replace(plan, recompute="block", policy=by_block(1)),)

    trainer, _ = rescued(make_trainer, "backward", {2}, ladder)
    torch.manual_seed(0)
    plain = make_trainer("plain", model=Net(), optim=OPTIM, log=LogConfig(every=1))
    plain.fit()
    for name, tensor in state(plain).items():
        torch.testing.assert_close(state(trainer)[name], tensor, rtol=0, atol=0, msg=name)
    assert trainer.plan.recompute == "block"


@pytest.mark.slow
def test_the_next_plan_may_keep_less_in_compiled_graphs(make_trainer, monkeypatch):
    """torch.compile's partitioner gets the next plan's budget, and its graphs are made anew."""
    budgets: list[float] = []

    def counting(graph, inputs):
        budgets.append(torch._functorch.config.activation_memory_budget)
        return graph.forward

    def trained(folder: str, failing_calls: set[int]):
        torch.manual_seed(0)
        model = Net()
        trainer = make_trainer(folder, model=model, optim=OPTIM)
        trainer.step.plan = replace(trainer.plan, compile=True, policy=Policy(partition=1.0))
        trainer.rescue = rescue_of(trainer, (replace(trainer.plan, policy=Policy(partition=0.25)),))
        torch._dynamo.reset()
        model.compile(backend=counting, dynamic=False)
        backward, calls = trainer.accelerator.backward, iter(range(1, 100))

        def maybe(loss):
            if next(calls) in failing_calls:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            backward(loss)

        monkeypatch.setattr(trainer.accelerator, "backward", maybe)
        trainer.fit()
        return trainer

    with torch._functorch.config.patch(activation_memory_budget=1.0):
        trainer = trained("rescued", {2})
        # the step; the step anew, and the evaluation
        assert trainer.plan.policy.partition == 0.25 and budgets == [1.0, 0.25, 0.25]
        for name, tensor in state(trained("plain", set())).items():
            torch.testing.assert_close(state(trainer)[name], tensor, rtol=0, atol=0, msg=name)


def test_other_errors_are_not_taken_for_memory(make_trainer):
    trainer = make_trainer(model=Net(), optim=OPTIM)
    trainer.rescue = rescue_of(trainer, halvings(trainer.plan))
    trainer.model.head.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory, or so")))
    with pytest.raises(RuntimeError, match="or so"):
        trainer.fit()


def test_a_share_that_does_not_divide_is_filled_up_with_weight_zero(make_trainer):
    """16 images in 3 micro-batches of 6: gradients as of the whole, for a network without BatchNorm."""

    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3 * 36, 2)

        def forward(self, images):
            sizes.append(len(images))
            return self.head(images.flatten(1))

    results = []
    for accumulation in (1, 3):
        sizes: list[int] = []
        torch.manual_seed(3)
        trainer = make_trainer(f"parts{accumulation}", model=Linear(), optim=OPTIM)
        micro = -(-16 // accumulation)
        trainer.step.plan = replace(trainer.plan, micro_batch_size=micro, accumulation=accumulation)
        trainer.accelerator.gradient_accumulation_steps = accumulation
        trainer.fit()
        results.append(state(trainer))
        if accumulation == 3:
            assert sizes[:6] == [6] * 6
    for name, tensor in results[0].items():
        torch.testing.assert_close(results[1][name], tensor, rtol=1e-5, atol=1e-6)
