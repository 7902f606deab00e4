"""What the check of the doctor plants and makes."""

import pytest

from engine.bench.doctor_check import double_exposures, found_of, plant, set_of, timed_examination
from engine.data.doctor.examine import examine


@pytest.fixture
def paths(photo, tmp_path):
    found = []
    for seed in range(8):
        found.append(str(tmp_path / f"{seed}.jpg"))
        photo(seed, 60, 80).save(found[-1])
    return found


def test_planted_copies_are_counted_by_their_kind(paths, tmp_path):
    (tmp_path / "copies").mkdir()
    planted = plant(paths, tmp_path / "copies")
    found = found_of(examine(set_of(paths, list(planted))), planted, paths)
    assert {kind: one["planted"] for kind, one in found.items()} == dict.fromkeys(
        ("exact", "recompressed", "resized", "cropped"), 1
    )
    assert found["exact"]["found"] == 1
    nothing = found_of(examine(set_of(paths, [])), planted, paths)
    assert not any(one["found"] for one in nothing.values())


def test_double_exposures_are_other_files_of_one_size(paths, tmp_path):
    (tmp_path / "made").mkdir()
    made = double_exposures(paths, tmp_path / "made", 28)
    assert len(set(made)) == 28
    assert timed_examination(made)["found"].get("exact", 0) == 0
    with pytest.raises(ValueError, match="28 pairs of 8 pictures for 29"):
        double_exposures(paths, tmp_path / "made", 29)
