"""Bytes by construction against a count by hand."""

import json

from torch import nn

from archs.layers import ConvNormAct, DepthwiseSeparable
from engine.bench.instrument.traffic import NETWORKS, TABLE, traffic


class Tiny(nn.Module):
    """A stem and one depthwise separable block, 3 -> 16 -> 32 channels."""

    def __init__(self):
        super().__init__()
        self.stem = ConvNormAct(3, 16, 3, stride=2)
        self.block = DepthwiseSeparable(16, 32)

    def forward(self, images):
        return self.block(self.stem(images))


def test_a_stem_and_a_block_counted_by_hand():
    """2 images of 8 x 8: the stem has X = 384 and Y = 512, the depthwise layer 512 and 512, the pointwise 512, 1024."""
    found = traffic(Tiny(), batch=2, size=8, itemsize=1)
    x, a, b = 2 * 3 * 64, 2 * 16 * 16, 2 * 32 * 16
    # The image has no gradient: its layer reads it twice. The step ends in sum(), whose gradient is one element.
    library = (2 * x + 2 * a + 8 * a) + (3 * a + 3 * a + 8 * a) + (3 * a + 3 * b + 8 * b)
    assert found["library"]["bytes"] == library
    stem = (x + a + a) + (x + a) + 3 * a  # convolution and statistics; wgrad; dy + c1 + c2 (y - mean)
    settled = 2 * a + 3 * a  # the stem's output, as a block's input
    depthwise = (a + a) + (2 * a + 2 * a)
    pointwise = (a + b) + (2 * a + 2 * b)
    last = 2 * b + 3 * b
    assert found["fused"]["bytes"] == stem + settled + depthwise + pointwise + last
    assert found["floor_bytes"] == (x + a) + (x + 2 * a) + (3 * a + 3 * a) + (3 * a + 3 * b)


def test_the_fused_way_moves_less():
    found = traffic("mobilenetv2", 4, 64)
    assert found["library_over_fused"] > 1.3
    assert 1 < found["fused_over_floor"] < 2.5


def test_the_committed_table_is_this_codes():
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    assert set(table["networks"]) == set(NETWORKS)
    assert table["networks"]["mobilenetv1"] == traffic("mobilenetv1", 128, 224)
