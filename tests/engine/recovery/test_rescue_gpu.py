"""Memory that runs out on a GPU: torch's own allocator refuses, and what only a GPU has is put back."""

import pytest
import torch

from engine.config import OptimConfig
from engine.plan.run_plan import halvings
from tests.engine.conftest import TinyNet, rescue_of

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]


class Wide(TinyNet):
    """Takes 4 MiB an image in its forward pass."""

    def forward(self, images):
        if self.training:
            torch.empty(len(images), 1 << 20, device=images.device)
        return super().forward(images)


def test_what_the_allocator_refuses_is_repeated_in_halves(make_trainer):
    """The card has room for half a batch; the allocator's own error of 700 letters is told in a line."""
    trainer = make_trainer(model=Wide(), device="cuda", optim=OptimConfig(epochs=1, batch_size=16))
    trainer.rescue = rescue_of(trainer, halvings(trainer.plan))
    trainer.rescue.allocate_state()
    torch.nn.Linear(8, 8, device="cuda")(torch.ones(8, 8, device="cuda")).sum().backward()  # cuBLAS's two workspaces
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (56 << 20)) / total)
    try:
        trainer.fit()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    (event,) = trainer.rescue.events
    assert event["step"] == 1 and trainer.plan.micro_batch_size == 8 and trainer.progress.step == 3
    assert event["reason"].startswith("CUDA out of memory. Tried to allocate 64.00 MiB.") and len(event["reason"]) < 200


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_fp16_gradients_of_a_repeated_step_are_unscaled(make_trainer, clip_norm):
    """Memory is out between unscaling and the update, which a clipped step does apart."""
    optim = OptimConfig(epochs=1, batch_size=16, lr=0.05, optimizer="sgd", clip_norm=clip_norm)
    found = []
    for fails in (False, True):
        torch.manual_seed(0)
        model = TinyNet(dropout=0.0)
        trainer = make_trainer(f"fails {fails}", model=model, optim=optim, precision="fp16", device="cuda")
        trainer.rescue = rescue_of(trainer, [trainer.plan])
        calls = []

        def out(*_, calls=calls, fails=fails) -> None:
            calls.append(None)
            if fails and len(calls) == 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

        trainer.rescue.allocate_state()
        trainer.optimizer.optimizer.register_step_pre_hook(out)
        trainer.fit()
        assert len(trainer.rescue.events) == fails and trainer.progress.step == 3
        found.append([parameter.detach().clone() for parameter in model.parameters()])
    for plain, repeated in zip(*found, strict=True):
        torch.testing.assert_close(repeated, plain, rtol=1e-2, atol=1e-3)


class Keeping(TinyNet):
    """Keeps 4 MiB an image for its backward pass, and asks for more than the card has at one call."""

    calls = 0

    def forward(self, images):
        kept = torch.ones(len(images), 1 << 20, device=images.device, requires_grad=True)
        self.calls += 1
        if self.calls == 2:
            torch.empty(1 << 40, device=images.device)
        return super().forward(images) + kept.square().mean()


class OtherRanks:
    """Stands in for the exchange with ranks that all succeed; notes what is allocated when zeros are handed in."""

    within_passes = False

    def __init__(self, step):
        self.step, self.allocated = step, []

    def begin(self, kind):
        pass

    def any_failed(self, mine):
        return mine

    def hand_in_zeros(self):
        self.allocated.append(torch.cuda.memory_allocated())

    def rewrap(self):
        return self.step.model


def test_the_failed_step_is_gone_when_zeros_are_handed_in_for_it(make_trainer):
    """They are a set of DDP's buckets: as many bytes as gradients, of which activations left more than that."""
    trainer = make_trainer(model=Keeping(), device="cuda", optim=OptimConfig(epochs=1, batch_size=16))
    trainer.rescue = rescue_of(trainer, [trainer.plan])
    trainer.rescue._exchange, trainer.rescue._alone = OtherRanks(trainer.step), False
    gradients = sum(4 * parameter.numel() for parameter in trainer.step.model.parameters())
    before = torch.cuda.memory_allocated()
    trainer.fit()
    (allocated,) = trainer.rescue._exchange.allocated
    assert len(trainer.rescue.events) == 1
    assert allocated - before < 8 * gradients + (4 << 20) < (64 << 20)  # weights' states and batches, no activations
