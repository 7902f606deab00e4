"""A batch of images that the memory cannot hold, refused by who asked for it."""

import re

import pytest

from engine.config import ConfigError
from engine.step.device_memory.batch import refuse_batch
from engine.step.plan import Hardware

CPU = Hardware("cpu", "CPU", memory_bytes=2**30)
GPU = Hardware("cuda", "H100", memory_bytes=2**30)


@pytest.mark.parametrize("channels", [1, 3])
def test_what_just_fits_is_let_through(channels):
    side = 1024
    most = 2**30 // (4 * channels * side * side)
    refuse_batch(most, side, channels, hardware=CPU)
    with pytest.raises(ConfigError, match=re.escape(f"a batch of {most + 1} images of 1024 px is 1.0")):
        refuse_batch(most + 1, side, channels, hardware=CPU)
    refuse_batch(10**9, side, channels, hardware=Hardware("cpu", "CPU"))  # nobody knows


def test_the_words_are_those_of_who_asks():
    with pytest.raises(ConfigError, match=r"this machine has 1.00 GiB: give a smaller --batch-size or --image-size$"):
        refuse_batch(128, (16_000, 1_000), 3, hardware=CPU)
    told = r"^w\.safetensors: a batch of 128 images of 16000x1000 px .* H100 has 1.00 GiB: .*--batch-size$"
    with pytest.raises(ConfigError, match=told):
        refuse_batch(128, (16_000, 1_000), 3, "w.safetensors", GPU)
