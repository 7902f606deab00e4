"""`pointwise_conv2d`: a 1 × 1 convolution as a matrix product, fused as the depthwise one is.

Traffic, in elements: forward X + Y; backward 2X + 2Y in one pass where the weight's gradient fits the
registers, else 3X + 4Y in two.
"""

from torch import Tensor

from kernels.conv import call
from kernels.prologue import Prologue, Statistics


def pointwise_conv2d(
    x: Tensor,
    weight: Tensor,
    groups: int = 1,
    *,
    prologue: Prologue | None = None,
    statistics: bool = False,
    shuffle: int = 1,
) -> Tensor | tuple[Tensor, Statistics]:
    """y[n,o,h,w] = Σ_c weight[o,c,0,0] · x'[n, g(o)·C/groups + c, h, w], x' = act((x - center) · scale + shift).

    x           [N, C, H, W] fp32, bf16 or fp16 (fp64 runs the twin); made channels-last where it is not
    weight      [O, C / groups, 1, 1], any of these dtypes; used in x's, as is x'
    groups      divides C and O
    prologue    the BatchNorm and activation that the previous layer left open
    statistics  also return the mean and M2 of y [O], for the BatchNorm that follows
    shuffle     1, or g: x' is read as channel_shuffle(x', g), without a pass of its own
    returns     y [N, O, H, W] channels-last in x's dtype, accumulated in fp32; or (y, Statistics)

    fp32 is multiplied in fp32, or in TF32 where torch.get_float32_matmul_precision() is not "highest".
    Gradients reach x, weight, the prologue's vectors and, through the statistics, everything behind y. An empty
    batch gives an empty y, zero statistics and zero weight gradients. Tensors of more than 2³¹ elements work.

    Raises ValueError for a kernel that is not 1 × 1, groups that do not divide, shuffle that does not divide C.
    Twin: `kernels.conv.conv2d_twin`.
    """
    if weight.dim() != 4 or weight.shape[2:] != (1, 1):
        raise ValueError(f"weight must be [O, C / groups, 1, 1], not {list(weight.shape)}")
    if x.dim() == 4 and (shuffle < 1 or x.shape[1] % shuffle):
        raise ValueError(f"shuffle by {shuffle} does not divide {x.shape[1]} channels")
    path = "pointwise" if reads_shuffled(shuffle, groups, x) else "aten"
    return call(x, weight, 1, 0, 1, groups, shuffle, prologue, statistics, path)


def reads_shuffled(shuffle: int, groups: int, x: Tensor) -> bool:
    """Whether the shuffle is a relabelling: a group then reads `shuffle` contiguous slices."""
    return shuffle == 1 or (shuffle == groups and x.shape[1] % (groups * groups) == 0)
