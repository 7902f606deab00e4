"""What the loader takes of the device, by backend and source."""

import numpy as np
import pytest

from engine.config import DataConfig
from engine.data.backend import chosen_backend
from engine.data.sources.source import Source, Split
from engine.plan.memory.loader import DECODER_PADDING, MIB, Feed, feed_of, loader_bytes


def source(**images) -> Source:
    split = Split(np.zeros(2, dtype=np.int64), **images)
    return Source("some", ["a", "b"], split, split, (0.5,) * 3, (0.5,) * 3, True, (0.1, 1.0), 0.875)


def test_torchvision_and_images_made_on_the_device_take_nothing_outside_the_allocator():
    assert Feed("torchvision").device_bytes(128, 224, False) == Feed("none").device_bytes(128, 224, False) == 0


def test_a_decoder_s_threads_and_both_graphs_count():
    one, two = (Feed(threads=count).device_bytes(128, 224, False) for count in (4, 8))
    assert two - one == 2 * 4 * DECODER_PADDING
    assert 0.3 * 1024 * MIB < two - loader_bytes(128, 224, 2, False) < 0.6 * 1024 * MIB


def test_arrays_are_not_decoded():
    files, arrays = Feed(), Feed(encoded=False, side=32)
    assert arrays.device_bytes(128, 32, False) < 0.25 * files.device_bytes(128, 32, False) + 192 * MIB
    assert arrays.device_bytes(128, 224, False) < files.device_bytes(128, 224, False) - 2 * 8 * DECODER_PADDING


def test_a_batch_s_forms_on_the_way():
    pixels = 2 * 3 * 10 * 10
    assert Feed().staged_bytes(2, 10, "fp32") == Feed().staged_bytes(2, 10, "fp16") == []
    assert Feed().staged_bytes(2, 10, "bf16") == [4 * pixels]
    assert Feed("torchvision").staged_bytes(2, 10, "bf16") == [pixels, 4 * pixels, 4 * pixels]


def test_what_a_run_reads_with_what(monkeypatch):
    digits = feed_of(source(arrays=np.zeros((2, 8, 9), dtype=np.uint8)), DataConfig(workers=3, prefetch=4))
    assert (digits.encoded, digits.side, digits.threads, digits.prefetch) == (False, 9, 3, 4)
    photos = feed_of(source(paths=["a.jpg", "b.jpg"]), DataConfig(backend="torchvision"))
    assert photos.encoded and photos.backend == "torchvision"
    monkeypatch.setattr("engine.data.backend._dali_is_there", lambda: False)
    assert chosen_backend("auto") == "torchvision"
    monkeypatch.setattr("engine.data.backend._dali_is_there", lambda: True)
    assert chosen_backend("auto") == "dali" and chosen_backend("torchvision") == "torchvision"


@pytest.mark.parametrize("missing", ["nvidia.dali", "nvidia"])
def test_dali_is_looked_for_without_loading_it(missing, monkeypatch):
    import sys

    monkeypatch.delitem(sys.modules, "nvidia.dali", raising=False)  # another test may have loaded it
    monkeypatch.setitem(sys.modules, missing, None)
    assert chosen_backend("auto") == "torchvision"
