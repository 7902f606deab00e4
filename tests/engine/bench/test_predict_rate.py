"""The comparison with a DataLoader loop: the same pictures go through both, and both say the same."""

import pytest

from engine.bench.predict_rate import measure
from engine.bench.suites.loader_rate import drawn_photos


@pytest.mark.slow
def test_both_sides_see_every_picture_and_say_the_same():
    row = measure(drawn_photos(), "convnet_bn", 32, "fp32", batch_size=4, turns=1)
    assert (row["pictures"], row["turns"], row["same_class"]) == (6, 1, 1.0)
    assert row["wall_ratio"] > 0 and row["processor_ratio"] > 0
