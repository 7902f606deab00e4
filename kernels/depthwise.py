"""`depthwise_conv2d`: one K × K filter a channel, fused with the BatchNorms and activations on both sides.

Traffic, in elements: forward X + Y, backward 2X + 2Y, with the previous layer's BatchNorm and activation and
this layer's statistics inside. Unfused they cost 3X + 11Y together even under a compiler that fuses pointwise
work, because the convolution is a call to a library.
"""

from torch import Tensor

from kernels.conv import call, pair
from kernels.prologue import Prologue, Statistics

KERNEL_SIZES = (3, 5, 7)
STRIDES = (1, 2)


def depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    *,
    prologue: Prologue | None = None,
    statistics: bool = False,
) -> Tensor | tuple[Tensor, Statistics]:
    """y[n,c,i,j] = Σ_kl weight[c,0,k,l] · x'[n, c, i·s + k - p, j·s + l - p], x' = act((x - center) · scale + shift).

    x           [N, C, H, W] fp32, bf16 or fp16 (fp64 runs the twin); made channels-last where it is not
    weight      [C, 1, K, K], K in {3, 5, 7}, any of these dtypes; used in x's
    stride      1 or 2, the same for both axes;  padding  any, (height, width) or one number; x' is zero there
    prologue    the BatchNorm and activation that the previous layer left open
    statistics  also return the mean and M2 of y [C], for the BatchNorm that follows
    returns     y [N, C, H', W'] channels-last in x's dtype, accumulated in fp32; or (y, Statistics)

    Gradients reach x, weight, the prologue's vectors and, through the statistics, everything behind y. An empty
    batch gives an empty y, zero statistics and zero weight gradients. Tensors of more than 2³¹ elements work.

    Raises ValueError for an even K or one above 7, another stride, a weight that is not [C, 1, K, K], a dtype
    or prologue that does not fit. Twin: `kernels.conv.conv2d_twin` with groups = C.
    """
    if weight.dim() != 4 or weight.shape[1] != 1 or weight.shape[2] != weight.shape[3]:
        raise ValueError(f"weight must be [C, 1, K, K], not {list(weight.shape)}")
    if weight.shape[2] not in KERNEL_SIZES:
        raise ValueError(f"K must be one of {KERNEL_SIZES}, not {weight.shape[2]}: use conv2d for others")
    if x.dim() == 4 and weight.shape[0] != x.shape[1]:
        raise ValueError(
            f"weight has {weight.shape[0]} channels and x has {x.shape[1]}: depthwise needs one filter each"
        )
    sides = pair(stride, "stride")
    if sides[0] != sides[1] or sides[0] not in STRIDES:
        raise ValueError(f"stride must be one of {STRIDES} for both axes, not {stride}: use conv2d for others")
    return call(x, weight, sides[0], padding, 1, weight.shape[0], 1, prologue, statistics, "depthwise")
