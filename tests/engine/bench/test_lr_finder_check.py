"""What `--find-lr` suggested for ten networks, beside nine rates that were tried: as good as it must be."""

import pytest

from engine.bench.lr_finder_check import FLAGS, GRID, NETWORKS, WITHIN, main, measure, short_of_best, told
from engine.train.lr_curve import Sweep, suggest

MADE = {"suggested_lr": 0.002, "sureness": "steady", "accuracy": 0.95, "grid": {"0.001": 0.955, "0.01": 0.9}}


@pytest.fixture
def rows(profile_rows):
    """Rows of all machines' files."""
    return profile_rows("lr-finder")


def test_every_suggestion_is_within_a_point_of_the_grids_best(rows):
    for name, row in rows:
        assert short_of_best(row["figures"]) <= WITHIN, name
        assert list(row["figures"]["grid"]) == [str(rate) for rate in GRID], name


def test_rows_are_of_todays_settings_and_suggestion(rows):
    """The curve that was measured suggests today what it did then."""
    for name, row in rows:
        settings, curve = row["identity"]["settings"], row["figures"]["curve"]
        assert settings == {"image_size": NETWORKS[name], "flags": list(FLAGS)}, name
        losses = [[float("nan") if loss is None else loss for loss in sweep] for sweep in curve["losses"]]
        found = suggest([Sweep(tuple(curve["rates"]), tuple(sweep)) for sweep in losses])
        assert float(f"{found.rate:.2g}") == row["figures"]["suggested_lr"], name
        assert found.sureness == row["figures"]["sureness"], name


def test_figures_in_words():
    assert short_of_best(MADE) == pytest.approx(0.005)
    assert short_of_best(MADE | {"accuracy": None}) == 1.0
    assert told(MADE) == "95.00% with the suggested --lr 0.002 (steady), best of the grid 95.50% at 0.001"


def test_a_network_that_is_none_of_them_is_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["resnet19"])
    assert ended.value.code == 2 and "resnet19 is none of" in capsys.readouterr().err


@pytest.mark.slow
def test_a_network_measured_anew():
    assert short_of_best(measure("convnet_bn", NETWORKS["convnet_bn"])) <= WITHIN
