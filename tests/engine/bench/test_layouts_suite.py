"""Suite `layouts` in its dry run: every row measures."""

import pytest

from engine.bench.instrument.options import Options
from engine.bench.suites.layouts_suite import rows


def test_every_row_measures(root):
    pytest.importorskip("nvidia.dali")
    like_others = ("jsonl", "one arena")
    several = [row for row in rows(Options(dry_run=True)) if not row.key.endswith(like_others)]
    found = {row.key: row.measure(float("inf")) for row in several}
    assert found["shards ÷ files"]["ratio"]["shards / files"]["median"] > 0
    assert len(found["memory shards"]["resident_bytes"]) == 3 and found["memory shards"]["images"] == 6
    for kind in ("csv", "parquet"):
        listed = found[f"list {kind}"]
        assert listed["rows"] == 2000 and listed["bytes_before"] < listed["peak_bytes"] < 600 << 20
