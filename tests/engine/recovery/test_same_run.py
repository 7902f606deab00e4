"""A checkpoint meets data and flags: the same, or said, or refused."""

from dataclasses import replace
from pathlib import Path

import pytest

from engine.config import ConfigError, DataConfig, LogConfig, OptimConfig, RunConfig
from engine.data.fingerprint import Fingerprint
from engine.recovery.same_run import refuse_other, refuse_other_classes, run_identity

CONFIG = RunConfig(data=DataConfig(crop_scale=(0.5, 1.0)))
DATA = Fingerprint(["cat", "dog"], 16, 8, "one")
HERE = Path("checkpoints/step-1")


def state(step_in_epoch: int = 0, data: Fingerprint = DATA, config: RunConfig = CONFIG) -> dict:
    return {"progress": {"step_in_epoch": step_in_epoch}, "data": data.as_dict(), "run": run_identity(config)}


def test_the_same_run_on_the_same_data_goes_on():
    free = replace(CONFIG, log=LogConfig(every=3), data=replace(CONFIG.data, root=Path("moved"), workers=2))
    for config in (CONFIG, free):
        assert refuse_other(state(3), config, DATA, 8, HERE) is None
    assert refuse_other({"progress": {"step_in_epoch": 3}}, CONFIG, DATA, 8, HERE) is None  # an older checkpoint


def test_other_images_between_epochs_are_said():
    said = refuse_other(state(), CONFIG, Fingerprint(["cat", "dog"], 316, 7, "two"), 8, HERE)
    assert said == "the data changed (16 -> 316 training images, 8 -> 7 val images)"
    said = refuse_other(state(3), CONFIG, replace(DATA, digest="two"), 8, HERE)
    assert said == "the data changed (as many images, other names or sizes)"


def test_other_images_of_a_fold_are_refused():
    """Folds are drawn anew from all images: what was trained on would be tested on."""
    config = replace(CONFIG, data=replace(CONFIG.data, folds=3))
    assert refuse_other(state(config=config), config, DATA, 8, HERE) is None
    with pytest.raises(ConfigError, match=r"16 -> 18 training images.*folds are drawn from all images"):
        refuse_other(state(config=config), config, Fingerprint(["cat", "dog"], 18, 8, "two"), 8, HERE)


@pytest.mark.parametrize(("step", "images", "steps"), [(6, 8, 4), (3, 17, 8), (3, 15, 8)])
def test_another_number_of_images_within_an_epoch_is_refused(step, images, steps):
    with pytest.raises(ConfigError, match=rf"step-1 .*step {step} of an epoch.*16 -> {images} training images"):
        refuse_other(state(step), CONFIG, Fingerprint(["cat", "dog"], images, 8, "two"), steps, HERE)


def test_more_steps_than_the_epoch_has_are_refused_in_older_checkpoints():
    with pytest.raises(ConfigError, match="step 6 of an epoch"):
        refuse_other({"progress": {"step_in_epoch": 6}}, CONFIG, DATA, 4, HERE)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["dog", "zebra"], ["2 classes (cat, dog)", "(dog, zebra)", "in training: cat", "in the data: zebra"]),
        (["dog", "cat"], ["in another order", "cat, dog", "dog, cat"]),
        (["cat"], ["in training: dog", "in the data: none"]),
        (["cat", "do\u0301g"], ["dog", "do\u0301g"]),  # looks like dóg, which another class may be called
    ],
)
def test_other_classes_are_refused_with_both_lists(given, words):
    with pytest.raises(ConfigError) as refused:
        refuse_other(state(), CONFIG, Fingerprint(given, 16, 8, "one"), 8, HERE)
    assert all(word in str(refused.value) for word in words), refused.value
    refuse_other_classes(None, given, "old weights do not say")


def test_a_checkpoint_of_another_run_is_refused_by_its_fields():
    other = replace(CONFIG, optim=OptimConfig(lr=0.5))
    with pytest.raises(ConfigError, match=r"other fields: optim\.lr 0\.5 -> 0\.001"):
        refuse_other(state(config=other), CONFIG, DATA, 8, HERE)
