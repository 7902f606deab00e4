"""Policies choose as torchvision's classes do, from numbers that belong to the image alone."""

import numpy as np
import pytest
from torchvision.transforms import v2

from engine.data.augment import policies
from engine.data.augment.operators import NUMBERS
from engine.data.augment.policies import CHAINS, CHOICES, DEPTH, SIGNED, autoaugment_table, strength

NAMES = {number: name for name, number in NUMBERS.items()}
THEIR_NAMES = {
    "identity": "Identity",
    "shear-x": "ShearX",
    "shear-y": "ShearY",
    "translate-x": "TranslateX",
    "translate-y": "TranslateY",
    "auto-contrast": "AutoContrast",
}
SIDE = 224


def theirs(name: str) -> str:
    return THEIR_NAMES.get(name, name.capitalize())


def uniform(policy: policies.Policy, count: int = 20000, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((count, policy.draws))


@pytest.mark.parametrize(
    ("kind", "wide", "bins"), [(v2.RandAugment, False, 31), (v2.TrivialAugmentWide, True, 31)], ids=["rand", "trivial"]
)
def test_the_space_is_torchvisions(kind, wide, bins):
    space = kind._AUGMENTATION_SPACE
    assert {theirs(name) for name in CHOICES} == set(space)
    for name in CHOICES:
        magnitudes, signed = space[theirs(name)]
        assert signed == (name in SIGNED)
        values = magnitudes(bins, SIDE, SIDE)
        if values is None:
            continue
        ours = strength(name, np.arange(bins) / (bins - 1), wide, SIDE)
        ours = ours * SIDE if name.startswith("translate") else ours
        np.testing.assert_allclose(ours, values.numpy(), rtol=1e-5, atol=1e-5)


def test_autoaugments_table_is_torchvisions():
    known = v2.AutoAugment()._policies
    found = autoaugment_table()
    assert len(found) == len(known) == 25
    for ours, other in zip(found, known, strict=True):
        for (name, chance, tenth), (their_name, their_chance, their_tenth) in zip(ours, other, strict=True):
            assert (theirs(name), chance, tenth) == (their_name, their_chance, their_tenth or 0)


def test_randaugment_takes_each_operator_equally_often_and_both_signs():
    policy = policies.randaugment(2, 9)
    chosen = policy.choose(uniform(policy), SIDE)
    counts = np.bincount(chosen.numbers.ravel(), minlength=len(NUMBERS) + 1)
    expected = np.array([name in CHOICES for name in NUMBERS])
    share = counts[1:][expected] / chosen.numbers.size
    assert np.all(np.abs(share - 1 / len(CHOICES)) < 0.005) and not counts[1:][~expected].any()
    for name in SIGNED:
        magnitudes = chosen.magnitudes[chosen.numbers == NUMBERS[name]]
        assert abs((magnitudes < 0).mean() - 0.5) < 0.05 and len(np.unique(np.abs(magnitudes))) == 1


def test_trivialaugment_takes_every_strength():
    policy = policies.trivialaugment()
    chosen = policy.choose(uniform(policy), SIDE)
    turned = np.unique(np.abs(chosen.magnitudes[chosen.numbers == NUMBERS["rotate"]]))
    np.testing.assert_allclose(turned, np.linspace(0, 135, 31), rtol=1e-6)


def test_autoaugments_chances_hold():
    policy = policies.autoaugment()
    draws = uniform(policy, 50000)
    chosen = policy.choose(draws, SIDE)
    rows = (draws[:, 0] * 25).astype(int)
    for row, pair in enumerate(autoaugment_table()):
        for slot, (name, chance, _) in enumerate(pair):
            applied = chosen.numbers[rows == row, slot]
            assert abs((applied > 0).mean() - chance) < 0.05 and set(applied.tolist()) <= {0, NUMBERS[name]}


def test_augmix_has_chains_of_one_to_three():
    policy = policies.augmix(3)
    chosen = policy.choose(uniform(policy, 4000), SIDE)
    chains = (chosen.numbers > 0).reshape(-1, CHAINS, DEPTH)
    lengths = chains.sum(axis=2)
    assert lengths.min() == 1 and lengths.max() == DEPTH
    assert all(abs((lengths == depth).mean() - 1 / 3) < 0.03 for depth in (1, 2, 3))
    assert np.all(np.diff(chains.astype(int), axis=2) <= 0), "a chain has a hole"
    space = v2.AugMix._AUGMENTATION_SPACE
    for number in np.unique(chosen.numbers[chosen.numbers > 0]):
        name = NAMES[int(number)]
        values = space[theirs(name)][0](10, SIDE, SIDE)
        if values is None:
            continue
        ours = np.abs(chosen.magnitudes[chosen.numbers == number])
        ours = ours * SIDE if name.startswith("translate") else ours
        np.testing.assert_allclose(np.unique(ours), np.unique(values[:3].abs().float().numpy()), rtol=1e-4)


def test_jitter_reaches_its_bounds_in_every_order():
    policy = policies.jitter((0.5, 0.4, 0.3, 0.1))
    chosen = policy.choose(uniform(policy), SIDE)
    assert len({tuple(row) for row in chosen.numbers.tolist()}) == 24
    for name, bound in (("brightness", 0.5), ("contrast", 0.4), ("color", 0.3), ("hue", 0.1)):
        magnitudes = chosen.magnitudes[chosen.numbers == NUMBERS[name]]
        assert 0.99 * bound < magnitudes.max() <= bound and -bound <= magnitudes.min() < -0.99 * bound
    without = policies.jitter((0.5, 0.0, 0.0, 0.0))
    assert set(np.unique(without.choose(uniform(without), SIDE).numbers)) == {0, NUMBERS["brightness"]}


def test_an_image_is_changed_the_same_in_any_company():
    for policy in (policies.randaugment(2, 9), policies.trivialaugment(), policies.autoaugment(), policies.augmix(3)):
        draws = uniform(policy, 16)
        together = policy.choose(draws, SIDE)
        for row in (0, 7, 15):
            alone = policy.choose(draws[row : row + 1], SIDE)
            np.testing.assert_array_equal(alone.numbers[0], together.numbers[row])
            np.testing.assert_array_equal(alone.magnitudes[0], together.magnitudes[row])
