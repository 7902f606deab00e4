"""What is frozen stays as it is, to the bit, whatever else a run does; rates by layer are timm's."""

from functools import partial

import pytest
import torch
from torch import nn

import archs
from archs.weights import reference_of, rename
from engine.config import ConfigError, ModelConfig, OptimConfig, RunConfig
from engine.plan.memory.simulate import Step, run_step, simulate
from engine.plan.memory.trace import Category
from engine.plan.memory.tracker import Tracker
from engine.step.finetune import freeze, frozen_text, is_frozen, layers_of, rate_scales, refuse_idle_rates
from engine.step.network import build_network
from engine.step.optim import build_optimizer, set_learning_rate
from engine.step.plan import Hardware, make_plan
from engine.step.recompute import by_block

QUICK = ("alexnet", "googlenet", "squeezenet1_1", "nin", "vit_s16")
"""Networks with heads of each kind; all others are looked at in the slow run."""


class Block(nn.Module):
    def __init__(self, first: int) -> None:
        super().__init__()
        self.conv, self.norm, self.dropout = nn.Conv2d(first, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Dropout(0.3)

    def forward(self, images):
        return self.dropout(self.norm(self.conv(images)).relu())


class Small(archs.Classifier):
    """A stem, three blocks with BatchNorm and dropout, a head; takes the test trainer's 6×6 pixels."""

    def __init__(self) -> None:
        head = nn.Sequential()
        head.add_module("fc", nn.Linear(8, 2))
        super().__init__(Block(3), [nn.Sequential(Block(8), Block(8), Block(8))], head)

    def forward(self, images):
        return self.head(self.stages(self.stem(images)).mean(dim=(2, 3)))


def frozen_small(finetune: str) -> Small:
    torch.manual_seed(3)
    model = Small()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
    freeze(model, finetune)
    return model


@pytest.mark.parametrize(("finetune", "trained"), [("all", 5), ("head", 1), ("0", 1), ("1", 2), ("3", 4)])
def test_the_last_blocks_and_the_head_are_trained(finetune, trained):
    model = frozen_small(finetune)
    parts = [*model.blocks(), model.head]
    states = [{parameter.requires_grad for parameter in part.parameters()} for part in parts]
    assert states == [{False}] * (5 - trained) + [{True}] * trained
    for part, (learns,) in zip(parts, states, strict=True):
        assert all(is_frozen(module) != learns for module in part.modules())
        assert all(module.training == learns for module in part.modules())
    model.train()
    assert [part.training for part in parts] == [learns for (learns,) in states], "train() leaves what is frozen alone"
    assert model.training and model.eval() is model and not model.head.training


def test_as_many_blocks_as_there_are_is_all():
    with pytest.raises(ConfigError, match=r"--finetune 4: .* has 4 blocks, and all of them are --finetune all"):
        frozen_small("4")


def test_what_is_no_number_is_told():
    for wrong in ("-1", "two", "1.5", ""):
        with pytest.raises(ConfigError, match="--finetune must be all, head or a number of blocks"):
            ModelConfig(finetune=wrong)


BOTH = {"backbone_lr": 0.01, "layer_decay": 0.5}


@pytest.mark.parametrize(
    ("finetune", "refused"), [("head", True), ("0", True), ("1", False), ("3", False), ("all", False)]
)
@pytest.mark.parametrize("rates", [{"backbone_lr": 0.01}, {"layer_decay": 0.5}, BOTH])
def test_rates_below_the_last_layer_need_something_trained_there(finetune, refused, rates):
    model, optim = Small(), OptimConfig(lr=0.1, **rates)
    if not refused:
        refuse_idle_rates(model, finetune, optim)
        return
    verb = "are" if len(rates) > 1 else "is"
    told = f"{verb} for what lies below the last layer, and with --finetune {finetune} nothing of the backbone of this "
    with pytest.raises(ConfigError) as caught:
        refuse_idle_rates(model, finetune, optim)
    said = str(caught.value)
    assert told in said and all(f"--optim.{name.replace('_', '-')}" in said for name in rates)


def test_a_run_that_goes_on_is_as_it_began():
    config = RunConfig(model=ModelConfig(arch="convnet_bn", finetune="head"), optim=OptimConfig(layer_decay=0.5))
    assert build_network(config, 5, begun=True).arch == "convnet_bn"
    with pytest.raises(ConfigError, match="nothing of the backbone of convnet_bn is trained"):
        build_network(config, 5)


def test_a_head_of_several_layers_has_such_rates():
    refuse_idle_rates(archs.build("alexnet", 10), "head", OptimConfig(layer_decay=0.5))
    with torch.device("meta"), pytest.raises(ConfigError, match="of googlenet"):  # auxiliary heads are heads
        refuse_idle_rates(archs.build("googlenet", 10), "head", OptimConfig(layer_decay=0.5))


def test_auxiliary_heads_are_trained_with_the_head(caplog):
    config = RunConfig(model=ModelConfig(arch="googlenet", finetune="head"))
    model = build_network(config, 5)
    told = "--finetune head without --pretrained: what is frozen stays as it was drawn"
    assert told in caplog.text
    caplog.clear()
    build_network(config, 5, begun=True)
    assert not caplog.text, "a run that goes on has its weights from its checkpoint"
    trained = {name.partition(".")[0] for name, one in model.named_parameters() if one.requires_grad}
    assert trained == {"auxiliary", "head"}


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"optim": {"ema": 0.9}},
        {"optim": {"sam": 0.05}},
        {"optim": {"optimizer": "sgd", "weight_decay": 0.1, "clip_norm": 0.5}},
        {"optim": {"backbone_lr": 0.001, "layer_decay": 0.5}},
        {"recompute": "block"},
        {"micro": 5},
        {"precision": "bf16"},
        pytest.param({"compile": "on"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
@pytest.mark.parametrize("finetune", ["head", "2"])
def test_frozen_parameters_and_statistics_are_unchanged_to_the_bit(make_trainer, finetune, how):
    how = dict(how)
    optim = OptimConfig(**{"epochs": 7, "batch_size": 16, "lr": 0.01, "optimizer": "adamw", **how.pop("optim", {})})
    model = frozen_small(finetune)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer = make_trainer(model=model, optim=optim, **how)
    trainer.fit()
    assert trainer.progress.step >= 20
    after = model.state_dict()
    frozen = {name for name, module in model.named_modules() if is_frozen(module)}
    kept = {name for name in before if any(name.startswith(f"{part}.") for part in frozen)}
    assert kept and any("running_mean" in name for name in kept)
    assert not [name for name in kept if not torch.equal(before[name], after[name])]
    assert not [name for name in before if name not in kept and torch.equal(before[name], after[name])]
    held = {id(one) for group in trainer.optimizer.param_groups for one in group["params"]}
    assert held == {id(one) for one in model.parameters() if one.requires_grad}


@pytest.mark.parametrize("finetune", ["head", "2", "4"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("policy", ["none", "block"])
def test_the_plan_s_bytes_are_those_of_a_real_step(finetune, precision, policy):
    def build():
        model = archs.build("resnet18", 10)
        freeze(model, finetune)
        return model

    how = by_block(len(list(build().blocks()))) if policy == "block" else None
    step = Step(32, 10, precision, cuda=False, **({"policy": how} if how else {}))
    predicted = simulate(build, step)
    real = run_step(build().to(memory_format=torch.channels_last).train(), step, 8, Tracker())
    assert predicted.peak(8) == pytest.approx(real.peak(8), rel=0.03)
    timeline, whole = predicted.timeline(8), simulate(partial(archs.build, "resnet18", 10), step).timeline(8)
    trained = 4 * sum(one.numel() for one in build().parameters() if one.requires_grad)
    assert timeline.live[Category.GRADIENTS].max() == trained
    assert timeline.live[Category.OPTIMIZER].max() == pytest.approx(2 * trained, rel=1e-2)
    assert predicted.saved(8) < simulate(partial(archs.build, "resnet18", 10), step).saved(8)
    assert timeline.total.max() < whole.total.max()


def test_below_the_cut_nothing_is_kept():
    def build():
        model = archs.build("resnet18", 10)
        freeze(model, "head")
        return model

    step = Step(32, 10, cuda=False)
    whole = simulate(partial(archs.build, "resnet18", 10), step).saved(64)
    assert simulate(build, step).saved(64) < 0.03 * whole


def test_the_plan_says_what_is_frozen_and_what_batchnorm_sees():
    config = RunConfig(model=ModelConfig(arch="resnet18", finetune="head"), optim=OptimConfig(batch_size=8))
    model = build_network(config, 10)
    plan = make_plan(config, model, Hardware("cpu", "CPU"))
    assert plan.gradient_bytes == 4 * 5130 and plan.optimizer_bytes == 2 * plan.gradient_bytes
    assert not plan.normalised, "frozen statistics see no images"
    assert plan.frozen == (
        "frozen: 11.18 M of 11.18 M parameters, which saves 128 MiB of gradients and optimizer states; "
        "no activation below the head is kept"
    )
    assert frozen_text(archs.build("resnet18", 10), 2) == ""


class TestRates:
    @pytest.mark.parametrize(("name", "model"), [("vit_s16", "vit_small_patch16_224"), ("resnet50", "resnet50")])
    def test_layer_decay_is_timm_s(self, name, model):
        timm = pytest.importorskip("timm", reason="timm is not installed: its rates cannot be compared")
        from timm.optim import param_groups_layer_decay

        theirs = timm.create_model(model)
        keys = {id(parameter): key for key, parameter in theirs.named_parameters()}
        expected = {
            key: torch.tensor(group["lr_scale"])
            for group in param_groups_layer_decay(theirs, 0.05, layer_decay=0.75)
            for key in (keys[id(parameter)] for parameter in group["params"])
        }
        expected = rename(expected, reference_of(name, f"timm:{model}"))
        ours = archs.build(name, 1000)
        optimizer = build_optimizer(ours, OptimConfig(lr=0.1, layer_decay=0.75))
        set_learning_rate(optimizer, 0.02)
        rates = {id(one): group["lr"] for group in optimizer.param_groups for one in group["params"]}
        for key, parameter in ours.named_parameters():
            assert rates[id(parameter)] == pytest.approx(0.02 * float(expected[key]), rel=1e-6), key
        assert len(rates) == len(expected)

    def test_the_backbone_has_a_rate_of_its_own(self):
        model = Small()
        scales = rate_scales(model, OptimConfig(lr=0.1, backbone_lr=0.01))
        for name, parameter in model.named_parameters():
            assert scales[id(parameter)] == pytest.approx(1.0 if name.startswith("head") else 0.1)

    def test_both_together(self):
        model = Small()
        scales = rate_scales(model, OptimConfig(lr=0.1, backbone_lr=0.05, layer_decay=0.5))
        by_layer = [{scales[id(one)] for one in layer} for layer in layers_of(model)]
        assert by_layer == [{0.5**4 / 2}, {0.5**3 / 2}, {0.5**2 / 2}, {0.5 / 2}, {1.0}]

    def test_without_either_there_are_two_groups_as_ever(self):
        groups = build_optimizer(Small(), OptimConfig()).param_groups
        assert len(groups) == 2 and "lr_scale" not in groups[0]

    @pytest.mark.parametrize(
        "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in archs.names()]
    )
    def test_every_parameter_of_every_network_is_in_one_layer(self, name):
        with torch.device("meta"):
            model = archs.build(name, 10)
        layers = layers_of(model)
        found = [id(one) for layer in layers for one in layer]
        assert len(found) == len(set(found)) == len(list(model.parameters()))
        assert len(layers) == len(list(model.blocks())) + 1

    @pytest.mark.parametrize(
        ("field", "told"), [({"layer_decay": 0.0}, "--optim.layer-decay"), ({"backbone_lr": -1.0}, "--optim.backbone")]
    )
    def test_what_makes_no_sense_is_told(self, field, told):
        with pytest.raises(ConfigError, match=told):
            OptimConfig(**field)

    def test_deepspeed_in_fp16_has_one_rate(self):
        with pytest.raises(ConfigError, match="DeepSpeed in fp16 knows one for all; use --precision bf16"):
            build_optimizer(Small(), OptimConfig(layer_decay=0.5), one_group=True)
        (group,) = build_optimizer(Small(), OptimConfig(), one_group=True).param_groups
        assert len(group["params"]) == len(list(Small().parameters()))
