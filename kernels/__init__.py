"""Fused training operators for convolutional networks. The marker below tells this package from the one on PyPI.

Between two layers there is one tensor, the raw convolution output. A layer opens the BatchNorm and activation that the
one before left (`Prologue`), convolves, and leaves its output with its statistics (`Statistics`), from which
`batch_norm` makes the next prologue. `dispatch` chooses between these kernels and the library's.
"""

from kernels.batch_norm import batch_norm, merge_statistics, running_batch_norm, synchronise, update_running
from kernels.conv import conv2d
from kernels.depthwise import depthwise_conv2d
from kernels.excited_pointwise import excited_pointwise_conv2d
from kernels.norm_act import norm_act
from kernels.pointwise import pointwise_conv2d
from kernels.prologue import Prologue, Statistics
from kernels.shuffle import channel_shuffle, shuffle_order
from kernels.squeeze_excite import squeeze_excite

DISTRIBUTION = "hcr-engine"

__all__ = [
    "DISTRIBUTION",
    "Prologue",
    "Statistics",
    "batch_norm",
    "channel_shuffle",
    "conv2d",
    "depthwise_conv2d",
    "excited_pointwise_conv2d",
    "merge_statistics",
    "norm_act",
    "pointwise_conv2d",
    "running_batch_norm",
    "shuffle_order",
    "squeeze_excite",
    "synchronise",
    "update_running",
]
