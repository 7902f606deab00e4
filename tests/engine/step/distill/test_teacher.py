"""What a teacher is taken for, its logits of another network's images, and the loss that they make."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

import archs
from engine.config import ConfigError, DistillConfig, OptimConfig, RunConfig
from engine.data.preprocessing import Preprocessing
from engine.plan.memory.simulate import Step, run_step, simulate
from engine.plan.memory.trace import Category
from engine.plan.memory.tracker import Tracker
from engine.runs.weights_facts import WeightsFacts
from engine.step.distill.kept_logits import KeptLogits, LogitsOf
from engine.step.distill.teacher import Teacher, TeacherNetwork
from engine.step.loss import Distillation, LossTerms, loss_and_hits
from engine.step.standing import Progress

LOGITS = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TAUGHT = torch.randn(6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
LABELS = torch.tensor([0, 1, 2, 2, 1, 0])
OURS = Preprocessing((0.5, 0.5, 0.5), (0.25, 0.25, 0.25), 0.875, "bilinear", 16)


def learnt(mode: str, weight: float, temperature: float = 3.0) -> torch.Tensor:
    terms = LossTerms(distillation=Distillation(mode, temperature, weight))
    return loss_and_hits(LOGITS, LABELS, torch.ones(6), 0.1, terms, TAUGHT)[0]


def test_logits_are_learnt_by_their_divergence():
    soft = (TAUGHT / 3).softmax(dim=1)
    divergence = (soft * (soft.log() - (LOGITS / 3).log_softmax(dim=1))).sum() * 9
    labels = F.cross_entropy(LOGITS, LABELS, reduction="sum", label_smoothing=0.1)
    torch.testing.assert_close(learnt("logits", 0.4), 0.6 * labels + 0.4 * divergence)
    torch.testing.assert_close(learnt("logits", 1.0), divergence)


def test_a_guess_is_learnt_as_a_second_label():
    labels = F.cross_entropy(LOGITS, LABELS, reduction="sum", label_smoothing=0.1)
    guesses = F.cross_entropy(LOGITS, TAUGHT.argmax(1), reduction="sum")
    torch.testing.assert_close(learnt("hard", 0.5), 0.5 * labels + 0.5 * guesses)


def test_the_teacher_sees_its_own_pixels_at_its_own_size():
    theirs = Preprocessing((0.4, 0.45, 0.5), (0.2, 0.3, 0.25), 0.875, "bilinear", 24)
    network = TeacherNetwork(nn.Flatten(), theirs, OURS, 24)
    raw = torch.rand(2, 3, 16, 16)
    seen = network((raw - 0.5) / 0.25).view(2, 3, 24, 24)
    larger = F.interpolate(raw, (24, 24), mode="bilinear")
    expected = (larger - torch.tensor(theirs.mean).view(1, 3, 1, 1)) / torch.tensor(theirs.std).view(1, 3, 1, 1)
    torch.testing.assert_close(seen, expected)
    assert not TeacherNetwork(nn.Flatten(), OURS, OURS).moved


def test_other_classes_are_refused_with_both_lists():
    teacher = Teacher("runs/x", ["cat", "dog"], None, 32)
    teacher.refuse_other(["cat", "dog"])
    for classes in (["dog", "cat"], ["cat", "dog", "cow"]):
        with pytest.raises(ConfigError, match=r"--distill runs/x: other classes: the teacher knows 2 \(cat, dog\)"):
            teacher.refuse_other(classes)


def test_a_librarys_teacher_has_its_classes_and_its_pixels(monkeypatch):
    teacher = Teacher.named("timm:resnet18")
    assert len(teacher.classes) == 1000 and teacher.image_size == 224
    with pytest.raises(ConfigError, match="the teacher knows 1000"):
        teacher.refuse_other(["cat", "dog"])
    import timm

    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: create(name, pretrained=False))
    assert teacher.load(1000, OURS)(torch.zeros(1, 3, 32, 32)).shape == (1, 1000)
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: 1 / 0)
    with pytest.raises(ConfigError, match="--distill timm:resnet18: timm cannot give these weights"):
        teacher.load(1000, OURS)


def test_a_teacher_may_be_a_librarys_network_that_was_trained_here(tmp_path):
    network = archs.build("torchvision:squeezenet1_1", 3, image_size=32)
    facts = WeightsFacts("torchvision:squeezenet1_1", ["a", "b", "c"], {}, 32)
    save_file(network.state_dict(), tmp_path / "w.safetensors", metadata=facts.as_metadata())
    loaded = Teacher.named(str(tmp_path / "w.safetensors")).load(3, None).network.state_dict()
    assert all(torch.equal(tensor, loaded[key]) for key, tensor in network.state_dict().items())


def test_what_is_no_teacher_is_said(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.safetensors").write_text("no weights")
    for name in ("missing", "empty", "text.safetensors"):
        with pytest.raises(ConfigError, match="--distill"):
            Teacher.named(str(tmp_path / name))


@pytest.mark.parametrize(
    ("distill", "sam", "told"),
    [
        ({"teacher": "x"}, 0.05, "--distill does not go with --optim.sam"),
        ({"weight": 0.9}, 0.0, "--distill.weight has no effect without --distill TEACHER"),
        ({"mode": "hard"}, 0.0, "--distill.mode has no effect without"),
        ({"teacher": "x", "mode": "hard", "temperature": 2.0}, 0.0, "--distill.temperature has no effect on"),
        ({"teacher": "x", "weight": 0.0}, 0.0, "--distill.weight must be in"),
        ({"teacher": "x", "temperature": 0.0}, 0.0, "--distill.temperature must be in"),
    ],
)
def test_what_cannot_be_meant_is_refused(distill, sam, told):
    with pytest.raises(ConfigError, match=told):
        RunConfig(distill=DistillConfig(**distill), optim=OptimConfig(sam=sam))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_planner_counts_the_teacher(precision):
    student, teacher = partial(archs.build, "convnet_bn", 10), partial(archs.build, "resnet18", 10)
    taught_by = partial(lambda: TeacherNetwork(teacher(), None, None))
    step = Step(32, 10, precision, cuda=False)
    predicted, alone = simulate(student, step, teacher=taught_by), simulate(student, step)
    model = student().to(memory_format=torch.channels_last).train()
    counted = run_step(model, step, 4, Tracker(), taught_by().to(memory_format=torch.channels_last))
    assert predicted.peak(4) == counted.peak(4)
    bytes_held = sum(one.nbytes for one in (*teacher().parameters(), *teacher().buffers()))
    held = predicted.timeline(4).live[Category.TEACHER]
    assert bytes_held <= held.min() == held.max() <= bytes_held + 24
    assert predicted.peak(4) - alone.peak(4) >= bytes_held


class Epochs:
    """Batches of made-up images by step, and a network that is asked how often."""

    def __init__(self, folder, steps: int = 3) -> None:
        self.progress, self.calls = Progress(), 0
        self.kept = KeptLogits(self._compute, folder, self.progress, steps, 4, 2)
        self.steps = steps

    def _compute(self, batch):
        self.calls += 1
        return batch.images.mean(dim=(2, 3))[:, :2] * 3.7

    def run(self, epochs: int = 2, first: int = 0) -> list[torch.Tensor]:
        seen = []
        for epoch in range(epochs):
            for step in range(0 if epoch else first, self.steps):
                self.progress.epoch, self.progress.step_in_epoch = epoch, step
                seed, count = 10 * epoch + step, 3 if step == self.steps - 1 else 4
                images = torch.randn(count, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
                seen.append(self.kept(SimpleNamespace(images=images)))
        return seen


def test_kept_logits_are_those_that_were_computed(tmp_path):
    first, second = Epochs(tmp_path), Epochs(tmp_path)
    computed, read = first.run(), second.run()
    assert (first.calls, second.calls, second.kept.read) == (6, 0, 6)
    assert all(torch.equal(one, other) for one, other in zip(computed, read, strict=True))


def test_half_an_epoch_and_a_damaged_file_are_none(tmp_path):
    half = Epochs(tmp_path)
    half.run(first=2)  # resumed in the middle of the first epoch
    assert not half.kept.path(0).exists() and half.kept.path(1).exists()
    bits = bytearray(half.kept.path(1).read_bytes())
    bits[-3] ^= 1
    half.kept.path(1).write_bytes(bits)
    again = Epochs(tmp_path)
    again.run()
    assert again.calls == 6


def test_a_disk_that_takes_nothing_costs_the_file_alone(tmp_path):
    (tmp_path / "file").write_text("in the way")
    blocked = Epochs(tmp_path / "file" / "folder")
    assert len(blocked.run()) == 6 and blocked.calls == 6


def test_logits_are_computed_in_pieces_of_the_plans_micro_batch():
    sizes = []
    network = nn.Flatten()
    network.register_forward_pre_hook(lambda module, images: sizes.append(len(images[0])))
    logits = LogitsOf(lambda: network, torch.device("cpu"), torch.float32, lambda: 4)
    batch = SimpleNamespace(images=torch.randn(10, 1, 2, 2))
    assert torch.equal(logits(batch), batch.images.flatten(1)) and sizes == [4, 4, 2]


def test_recording_a_step_is_refused():
    from engine.step.recorded.choice import obstacle

    config = replace(RunConfig(), distill=DistillConfig(teacher="x"))
    assert "--distill" in obstacle(config, "cuda", "bf16", 1, 0)
