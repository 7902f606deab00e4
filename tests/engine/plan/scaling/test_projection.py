"""Projected steps: the formulas at points where they are known, and a table that says what it is."""

from itertools import pairwise

import pytest

from engine.config import ConfigError
from engine.plan.request import PlanConfig
from engine.plan.scaling.command import run_projection
from engine.plan.scaling.network import CLUSTERS, Link, all_reduce, over_machines
from engine.plan.scaling.projection import buckets, gpu_counts, project, step_seconds

MIB = 2**20


def test_two_processes_exchange_halves():
    """2 messages of n/2 each way; long ones are all bandwidth, short ones all latency."""
    link = Link(latency=1e-3, bandwidth=1e6)
    assert all_reduce(10e6, 2, link) == pytest.approx(2e-3 + 10.0)
    assert all_reduce(10, 2, link) == pytest.approx(2e-3, rel=0.02)
    assert all_reduce(10e6, 1, link) == 0


def test_a_tree_is_faster_for_few_bytes_on_many():
    link = Link(latency=1e-5, bandwidth=1e9)
    assert all_reduce(8, 1024, link) == pytest.approx(20 * 1e-5, rel=1e-3)
    assert all_reduce(1e9, 8, link) == pytest.approx(2 * 7 * (1e-5 + 1 / 8), rel=1e-6), "a ring, for many on few"


def test_what_goes_between_machines_is_shared_by_their_gpus():
    cluster = CLUSTERS["eth100"]
    between = over_machines(1e9, 16, cluster) - over_machines(1e9, 8, cluster)
    assert between == pytest.approx(1e9 / 12.5e9, rel=0.01)  # all 8 parts of a machine over its one port


def test_buckets_are_ddps():
    """The last parameters first, a small first bucket, nothing lost."""
    found = buckets([30 * MIB, 10 * MIB, 20 * MIB, 2 * MIB])
    assert [size // MIB for size, _ in found] == [2, 30, 30]
    assert [ready for _, ready in found] == [0.25, 0.75, 1.0]


def test_an_exchange_hides_behind_the_passes_or_shows():
    parts = [(10, 0.5), (10, 1.0)]
    assert step_seconds(3.0, parts, lambda size: 0.0) == 3.0
    assert step_seconds(3.0, parts, lambda size: 0.5) == 3.5
    assert step_seconds(3.0, parts, lambda size: 4.0) == 2.0 + 8.0


def test_efficiency_falls_with_numbers_and_slower_networks():
    sizes = [100 * MIB] * 5
    fast, slow = (project(0.1, sizes, [1, 8, 64, 1024], CLUSTERS[name]) for name in ("ib400", "eth100"))
    assert fast[0].efficiency == slow[0].efficiency == 1
    assert all(a.efficiency >= b.efficiency for a, b in pairwise(fast))
    assert slow[-1].efficiency < fast[-1].efficiency <= 1


def test_numbers_of_gpus():
    assert gpu_counts("8..1024") == [8, 16, 32, 64, 128, 256, 512, 1024]
    assert gpu_counts("8..24") == [8, 16, 24]
    assert gpu_counts("8,12") == [8, 12]
    for wrong in ("8..4", "..8", "0..8", "many", "8..-1"):
        with pytest.raises(ConfigError):
            gpu_counts(wrong)


def test_the_table_says_that_it_is_projected(capsys):
    assert run_projection(PlanConfig(arch="resnet18", gpus="8..16", interconnect="ib400", step_ms=50)) == 0
    said = capsys.readouterr().out
    assert said.count("projected") == 4 and "every figure is PROJECTED" in said
    assert "measured on one GPU" in said and "assumed" not in said.split("network")[0]
    assert [line.split()[0] for line in said.splitlines()[2:4]] == ["8", "16"]


def test_a_range_needs_an_interconnect():
    with pytest.raises(ConfigError, match="a number from 1 on"):
        PlanConfig(gpus="8..16").run_config()
    with pytest.raises(ConfigError, match="give --interconnect"):
        PlanConfig(step_ms=3).run_config()
