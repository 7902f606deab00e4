"""Sizes as people write them."""

import pytest

from engine.config import ConfigError, MemoryConfig
from engine.config.byte_sizes import GIB, parse_bytes


@pytest.mark.parametrize(
    ("text", "size"), [("8GiB", 8 * GIB), ("8.5 gib", 17 * GIB // 2), ("12GB", 12 * 10**9), ("512MiB", GIB // 2)]
)
def test_sizes(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("8", "8GiB or 8MiB"),
        ("0GiB", "no memory"),
        ("0", "no memory"),
        ("8Gib/s", "a number and a unit"),
        ("8XB", "XB"),
    ],
)
def test_what_is_no_size_is_refused(text, said):
    with pytest.raises(ValueError, match=said):
        parse_bytes(text)
    with pytest.raises(ConfigError, match="--gpu-memory"):
        MemoryConfig(gpu_memory=text)
