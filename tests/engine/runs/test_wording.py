"""Figures in words."""

import pytest

from engine.runs.wording import duration, gib, measured, moment, number, percent, value_of


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (8.44, "8.4 s"),
        (59.99, "60.0 s"),
        (200, "3 min 20 s"),
        (3599.6, "1 h 00 min"),
        (7500, "2 h 05 min"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(None, "–"), (0, "0.0 MiB"), (87 << 20, "87.0 MiB"), (3 << 29, "1.50 GiB")]
)
def test_bytes(count, text):
    assert gib(count) == text


def test_numbers():
    assert percent(0.97864) == "97.86 %"
    assert percent(None) == "–"
    assert number(1234.5, 0) == "1,234"
    assert number(0.000123456, 3, significant=True) == "0.000123"
    assert number(float("nan"), 4) == "not finite"


def test_moments_are_in_utc():
    assert moment(0) == "1970-01-01 00:00:00 UTC"
    assert moment(None) == "–"


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("compile", True, "yes"),
        ("root", None, "–"),
        ("parameter_bytes", 1 << 30, "1.00 GiB"),
        ("lr", 0.001, "0.001"),
        ("crop_scale", [0.08, 1.0], "0.08, 1"),
        ("changes", [], "–"),
        ("nested", {"a": 1, "b": None}, "a 1, b –"),
        ("seed", 7, "7"),
    ],
)
def test_values(key, value, text):
    assert value_of(key, value) == text


def test_a_monitor_field_tells_its_unit():
    assert measured("gpu_power_watts", 204.4) == "204 W"
    assert measured("process_cpu_percent", 188.0) == "1.88 cores"
    assert measured("gpu_utilization", 0.9) == "90 %"
    assert measured("gpu_sm_clock_mhz", 2502) == "2,502 MHz"
