"""What comes with weights from elsewhere: the pixels that they expect, and the classes that their head knows."""

import json
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file

import archs
from engine.config import ConfigError, DataConfig, ModelConfig, RunConfig
from engine.config.data import USUAL_SIDE
from engine.data.preprocessing import Preprocessing
from engine.data.sources.source import Source, Split
from engine.step.network import build_network
from engine.step.weights import pretrained
from engine.step.weights.pretrained import with_preprocessing

EXPECTED = Preprocessing((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 0.9, "bicubic", 96)


def config(arch="resnet18", image_size=64, **model) -> RunConfig:
    return RunConfig(model=ModelConfig(arch=arch, **model), data=DataConfig(image_size=image_size))


@pytest.fixture
def source() -> Source:
    split = Split(labels=np.zeros(2, dtype=np.int64), arrays=np.zeros((2, 8, 8, 3), dtype=np.uint8))
    return Source("made", ["all"], split, split, (0.5,) * 3, (0.25,) * 3, True, (0.5, 1.0), 0.875)


@pytest.fixture
def trained(tmp_path):
    """trained(classes, **facts): a resnet18's weights in a file that says of itself what a run's does."""

    def write(classes=("rose", "tulip", "daisy"), **facts):
        torch.manual_seed(7)
        model = archs.build("resnet18", len(classes))
        torch.nn.init.normal_(model.head.fc.bias)
        said = {"arch": "resnet18", "classes": json.dumps(classes), "preprocessing": EXPECTED.to_json(), **facts}
        save_file(
            model.state_dict(),
            tmp_path / "model.safetensors",
            metadata={k: v for k, v in said.items() if v is not None},
        )
        return str(tmp_path / "model.safetensors"), model

    return write


class TestPixels:
    def test_a_file_s_are_taken(self, trained, source):
        found = with_preprocessing(config(pretrained=trained()[0]), source)
        assert Preprocessing.named_by(found.data) == replace(EXPECTED, image_size=64)

    def test_a_library_s_are_taken(self, source):
        found = with_preprocessing(config("resnet50", 224, pretrained="torchvision:resnet50"), source).data
        assert (found.eval_crop, found.mean) == (224 / 232, (0.485, 0.456, 0.406))

    def test_their_size_is_taken_where_none_is_given(self, trained, source, caplog):
        caplog.set_level("INFO", logger="hcr")
        found = with_preprocessing(config(image_size=0, pretrained=trained()[0]), source)
        assert Preprocessing.named_by(found.data) == EXPECTED
        build_network(found, 3)
        assert "expects 96 px, crop 0.9, bicubic" in caplog.text and "; so has this run" in caplog.text
        for model in ({}, {"pretrained": trained(preprocessing=None)[0]}):  # nobody says
            assert with_preprocessing(config(image_size=0, **model), source).data.image_size == USUAL_SIDE

    def test_growing_images_do_not_end_below_where_they_begin(self, trained, source):
        asked = config(pretrained=trained()[0])
        grows = replace(asked, data=DataConfig(progressive_from=100))
        with pytest.raises(ConfigError, match="to the image size of 96 px, not 100"):
            with_preprocessing(grows, source)

    def test_flags_win(self, trained, source):
        asked = config(pretrained=trained()[0])
        found = with_preprocessing(replace(asked, data=replace(asked.data, interpolation="bilinear")), source)
        assert Preprocessing.named_by(found.data) == replace(EXPECTED, image_size=64, interpolation="bilinear")

    def test_without_weights_they_are_the_source_s(self, source):
        found = Preprocessing.named_by(with_preprocessing(config(), source).data)
        assert found == Preprocessing(source.mean, source.std, 0.875, "bilinear", 64)

    def test_weights_that_do_not_say_are_told_what_is_assumed(self, trained, source, caplog):
        caplog.set_level("INFO", logger="hcr")
        found = with_preprocessing(config(pretrained=trained(preprocessing=None)[0]), source)
        assert found.data.mean == source.mean and not caplog.text
        build_network(found, 3)
        assert "does not say which pixels it expects; assumed: 64 px, crop 0.875, bilinear, mean 0.5" in caplog.text

    def test_another_size_than_theirs_is_said(self, trained, source, caplog):
        caplog.set_level("INFO", logger="hcr")
        build_network(with_preprocessing(config(pretrained=trained()[0]), source), 3)
        assert "expects 96 px, crop 0.9, bicubic" in caplog.text and "this run has 64 px" in caplog.text

    def test_metadata_that_cannot_be_meant_is_refused(self, trained, source):
        with pytest.raises(ConfigError, match="cannot be read"):
            with_preprocessing(config(pretrained=trained(preprocessing="nonsense")[0]), source)


class TestClasses:
    def build(self, path, classes):
        torch.manual_seed(0)
        fresh = archs.build("resnet18", len(classes))
        torch.manual_seed(0)
        return build_network(config(pretrained=path), len(classes), classes), fresh

    def test_rows_of_the_same_names_are_kept_in_their_new_places(self, trained, caplog):
        caplog.set_level("INFO", logger="hcr")
        path, old = trained()
        new, fresh = self.build(path, ["daisy", "orchid", "rose", "violet"])
        for kind in ("weight", "bias"):
            theirs, ours, anew = (getattr(model.head.fc, kind) for model in (old, new, fresh))
            assert torch.equal(ours[[0, 2]], theirs[[2, 0]])
            assert torch.equal(ours[[1, 3]], anew[[1, 3]])
        assert "the head knows daisy, rose by name, orchid, violet start anew" in caplog.text

    def test_as_many_classes_of_other_names_start_anew(self, trained, caplog):
        caplog.set_level("INFO", logger="hcr")
        path, _ = trained()
        new, fresh = self.build(path, ["cat", "cow", "dog"])
        assert torch.equal(new.head.fc.weight, fresh.head.fc.weight)
        assert "head.fc.weight, head.fc.bias start anew: none of the 3 classes is among theirs" in caplog.text

    def test_the_same_names_in_another_order_are_sorted(self, trained, caplog):
        caplog.set_level("INFO", logger="hcr")
        path, old = trained()
        new, _ = self.build(path, ["tulip", "daisy", "rose"])
        assert torch.equal(new.head.fc.weight, old.head.fc.weight[[1, 2, 0]])
        assert "the head knows all 3 classes" in caplog.text

    def test_weights_without_names_keep_a_head_of_as_many(self, trained, caplog):
        caplog.set_level("INFO", logger="hcr")
        path, old = trained(classes=("a", "b", "c"))
        save_file(old.state_dict(), path)
        new, _ = self.build(path, ["cat", "cow", "dog"])
        assert torch.equal(new.head.fc.weight, old.head.fc.weight)
        assert "they name no classes, so the head is kept as it is" in caplog.text

    def test_imagenet_s_names_are_known(self, monkeypatch):
        theirs = torchvision.models.resnet18().state_dict()
        monkeypatch.setattr(pretrained, "library_weights", lambda name: theirs)
        new, _ = self.build("torchvision:resnet18", ["goldfish", "rose"])
        assert torch.equal(new.head.fc.weight[0], theirs["fc.weight"][1])

    def test_of_another_network_is_told_with_its_name(self, trained):
        path, _ = trained()
        with pytest.raises(ConfigError, match=r"do not fit.*; the file says that it is of resnet18"):
            build_network(config("squeezenet1_1", pretrained=path), 3, ["rose", "tulip", "daisy"])

    def test_metadata_that_lies_is_told(self, trained):
        path, _ = trained(classes=("a", "b", "c"))
        facts = {"classes": json.dumps(["a", "b", "c", "d"])}
        save_file(archs.build("resnet18", 3).state_dict(), path, metadata=facts)
        for classes in (["c", "d"], ["a", "b"], ["e", "f"], None):
            with pytest.raises(ConfigError, match="the file names 4 classes, and its head is for 3"):
                build_network(config(pretrained=path), 2, classes)

    def test_a_library_s_network_is_held_to_its_count_too(self, tmp_path):
        path, name = tmp_path / "model.safetensors", "torchvision:mobilenet_v3_small"
        state = archs.build(name, 3).state_dict()
        for count in (2, 3, 4):
            save_file(state, path, metadata={"classes": json.dumps([*"abcd"[:count]])})
            with pytest.raises(ConfigError, match=f"names {count} classes, and") if count != 3 else nullcontext():
                build_network(config(name, pretrained=str(path)), 2, ["a", "b"])

    def test_auxiliary_heads_follow(self, tmp_path):
        old, path = archs.build("googlenet", 2), tmp_path / "model.safetensors"
        save_file(old.state_dict(), path, metadata={"classes": '["a", "b"]'})
        asked = config("googlenet", 64, pretrained=str(path))
        new = build_network(asked, 3, ["b", "c", "a"])
        heads = [key for key in new.state_dict() if key.startswith("auxiliary.") and key.endswith("fc.weight")]
        assert heads
        for key in heads:
            assert torch.equal(new.state_dict()[key][[2, 0]], old.state_dict()[key])


@pytest.mark.parametrize(
    ("arch", "source", "told"),
    [
        ("mixer_s16", "timm:mixer_s16_224", "of its family there are timm:mixer_b16_224 for mixer_b16"),
        ("gmlp_ti16", "timm:gmlp_ti16_224", "of its family there are timm:gmlp_s16_224 for gmlp_s16"),
        ("se_resnet18", "timm:seresnet18", "timm:seresnet50 for se_resnet50, timm:seresnext50_32x4d for se_resnext50"),
    ],
)
def test_a_source_without_weights_is_refused_with_those_there_are(arch, source, told):
    with pytest.raises(ConfigError, match=f"--pretrained {source}: timm publishes no weights of it; .*{told}"):
        build_network(config(arch, 224, pretrained=source), 10)
