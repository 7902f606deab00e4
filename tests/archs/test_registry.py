"""Names, aliases, options and what a wrong one is told."""

import pytest

import archs
from archs import registry


def test_names_of_this_release():
    assert archs.names() == [
        "darknet53",
        "inceptionv3",
        "inceptionv3_fullres",
        "resnet18",
        "resnext29_2x64d",
        "resnext50",
    ]


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
    with pytest.raises(archs.UnknownArch, match=r"called 'q' .there are darknet53, .*, resnext50"):
        archs.lookup("q")


def test_unknown_arch_is_a_value_error():
    assert issubclass(archs.UnknownArch, ValueError)


def test_unknown_option_is_told_the_options():
    with pytest.raises(TypeError, match=r"inceptionv3 takes no option 'dropuot'; it takes .*dropout"):
        archs.build("inceptionv3", num_classes=10, dropuot=0.1)


def test_no_classes_is_refused():
    with pytest.raises(ValueError, match="at least one class, not 0"):
        archs.build("resnet18", num_classes=0)


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
    def tiny(num_classes, *, depth=1):
        return num_classes, depth

    assert archs.build("t", 7, depth=2) == (7, 2)
    assert "tiny" in archs.names()
    assert "t" not in archs.names()


def test_every_entry_says_where_it_comes_from(name):
    info = archs.lookup(name)
    assert "arXiv:" in info.paper
    assert 2012 <= info.year <= 2025
    assert info.minimum_size <= info.image_size
    assert all(source.partition(":")[0] in ("torchvision", "timm") for source in info.sources)
