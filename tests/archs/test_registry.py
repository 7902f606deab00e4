"""Names, aliases, options and what a wrong one is told."""

from datetime import date

import pytest
from torch import nn

import archs
from archs import registry

ZOO = """
alexnet alexnet_owt vgg11 vgg13 vgg16 vgg19 vgg11_bn vgg13_bn vgg16_bn vgg19_bn nin convnet_bn
resnet18 resnet34 resnet50 resnet101 resnet152 densenet40 densenet121 densenet169 densenet201
mobilenetv1 mobilenetv2 googlenet inceptionv3 inceptionv3_fullres darknet53 darknet19 xception
resnext50 resnext101_32x8d resnext29_2x64d resnext29_8x64d se_resnet18 se_resnet50 se_resnext50
squeezenet1_0 squeezenet1_1 shufflenet_g1 shufflenet_g2 shufflenet_g3 shufflenet_g4 shufflenet_g8 shufflenetv2_x1_0
efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4 efficientnet_b5 efficientnet_b6
efficientnet_b7 efficientnetv2_s efficientnetv2_m efficientnetv2_l
vit_s16 vit_b16 vit_b32 vit_d6 mixer_s16 mixer_b16 mixer_d12 resmlp_12 resmlp_24 gmlp_ti16 gmlp_s16 gmlp_d6
"""


def test_every_name_of_the_zoo_is_there():
    assert set(ZOO.split()) <= set(archs.names())
    assert {archs.lookup(alias).name for alias in ("resnext", "senet")} == {"resnext50", "se_resnet18"}


def test_alias_is_the_same_network():
    assert archs.lookup("resnext") is archs.lookup("resnext50")
    assert archs.lookup("resnext").name == "resnext50"


@pytest.mark.parametrize(
    ("wrong", "near"), [("resnxt50", "resnext50"), ("ResNet18", "resnet18"), ("inception", "inceptionv3")]
)
def test_unknown_name_is_told_the_nearest(wrong, near):
    with pytest.raises(archs.UnknownArch, match=rf"'{wrong}'; nearest: .*\b{near}\b"):
        archs.build(wrong, num_classes=10)


def test_unknown_name_near_to_nothing_lists_all():
    with pytest.raises(archs.UnknownArch, match=r"called 'q' .there are alexnet, .*, resnext50"):
        archs.lookup("q")


def test_unknown_arch_is_a_value_error():
    assert issubclass(archs.UnknownArch, ValueError)


def test_unknown_option_is_told_the_options():
    with pytest.raises(TypeError, match=r"inceptionv3 takes no option 'dropuot'; it takes .*dropout"):
        archs.build("inceptionv3", num_classes=10, dropuot=0.1)


def test_no_classes_is_refused():
    with pytest.raises(ValueError, match="at least one class, not 0"):
        archs.build("resnet18", num_classes=0)


@pytest.mark.parametrize("channels", [0, -1, 1.5])
def test_no_input_channels_are_refused(channels):
    with pytest.raises(ValueError, match=f"at least one input channel, not {channels}"):
        archs.build("resnet18", num_classes=10, in_channels=channels)


def test_images_too_small_are_refused_when_it_is_built():
    with pytest.raises(ValueError, match="inceptionv3 needs images of at least 75x75 pixels, not 74x74"):
        archs.build("inceptionv3", num_classes=10, image_size=74)


@pytest.mark.parametrize("taken", ["resnet18", "resnext"])
def test_a_taken_name_is_refused(taken):
    with pytest.raises(ValueError, match=f"two networks are called '{taken}'"):
        registry.register(taken, paper="", year=0, image_size=0, parameters=0, multiply_adds=0)(
            lambda num_classes: None
        )


def test_a_new_network_needs_one_decorator(monkeypatch):
    for table in ("_INFOS", "_CONSTRUCTORS", "_ALIASES"):
        monkeypatch.setattr(registry, table, dict(getattr(registry, table)))

    @registry.register("tiny", aliases=("t",), paper="none", year=2020, image_size=8, parameters=3, multiply_adds=4)
    class Tiny(archs.Classifier):
        def __init__(self, num_classes, *, in_channels=3, depth=1):
            super().__init__(nn.Identity(), [], nn.Linear(in_channels, num_classes))
            self.depth = depth

    model = archs.build("t", 7, image_size=8, depth=2, in_channels=1)
    assert (model.arch, model.depth, model.head.weight.shape) == ("tiny", 2, (7, 1))
    assert "tiny" in archs.names()
    assert "t" not in archs.names()


def test_every_entry_says_where_it_comes_from(every_name):
    info = archs.lookup(every_name)
    assert "arXiv:" in info.paper or every_name == "alexnet"  # which is older than its authors' use of arXiv
    assert 2012 <= info.year <= date.today().year
    assert info.minimum_size <= info.image_size
    assert all(source.partition(":")[0] in ("torchvision", "timm") for source in info.sources)
