"""The layers that the networks over patches share: an image becomes [N, tokens, channels], and stays that."""

from collections import OrderedDict
from collections.abc import Callable

import torch
from einops import rearrange, reduce
from torch import Tensor, nn

from archs.classifier import ImageSize, sides
from archs.layers import DropPath

TIMM_RENAMES = (
    (r"^(stem|patch_embed)\.proj\.", "stem.conv."),
    (r"^blocks\.", "stages.0."),
    (r"^norm\.", "head.norm."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
)
"""timm's key to ours, for what every network over patches has."""


class Patches(nn.Module):
    """Cut images into squares and project each: [N, in_channels, H, W] -> [N, (H / patch)·(W / patch), channels].

    Dosovitskiy et al., 2020, arXiv:2010.11929, equation 1; the projection is a convolution whose stride is its size.
    """

    def __init__(self, in_channels: int, channels: int, patch: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, patch, patch)

    def forward(self, images: Tensor) -> Tensor:
        # A view where the convolution's output is channels-last; else one copy here, where every layer would need its.
        return rearrange(self.conv(images), "n c h w -> n (h w) c").contiguous()


def patch_count(image_size: ImageSize, patch: int) -> int:
    """Tokens of an image. Raises ValueError where the patches do not tile it, naming the nearest sizes."""
    height, width = sides(image_size)
    for side in (height, width):
        if side % patch or side < patch:
            below, above = side // patch * patch, max(patch, -(-side // patch) * patch)
            would = f"{below} or {above}" if below > 0 else f"{above}"
            would = would if height == width else f"for {side}: {would}"
            raise ValueError(
                f"{patch}x{patch} patches do not tile an image of {height}x{width} pixels; {would} would do"
            )
    return (height // patch) * (width // patch)


class TokenLinear(nn.Linear):
    """The same linear map of the tokens in every channel: [N, in_features, C] -> [N, out_features, C].

    y[n, s, c] = Σ_t weight[s, t] · x[n, t, c] + bias[s], what nn.Linear makes of "n t c -> n c t", and back. As a
    product from the left it needs neither transpose: no copy of the tokens is made, and none is kept.
    """

    def forward(self, tokens: Tensor) -> Tensor:
        weight, device = self.weight, self.weight.device.type
        if device != "meta" and torch.is_autocast_enabled(device):
            # Cast before it is expanded: autocast would cast, and keep, a copy for every image.
            weight = weight.to(torch.get_autocast_dtype(device))
        return torch.baddbmm(self.bias.unsqueeze(-1), weight.expand(tokens.shape[0], -1, -1), tokens)


class Mlp(nn.Sequential):
    """Two linear layers with an activation between: [..., features] -> [..., features].

    linear  nn.Linear works on the last axis, TokenLinear on the last but one
    """

    def __init__(
        self,
        features: int,
        hidden: int,
        act: Callable[[], nn.Module] = nn.GELU,
        dropout: float = 0.0,
        linear: type[nn.Linear] = nn.Linear,
    ) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict(fc1=linear(features, hidden), act=act())
        if dropout:
            layers["dropout1"] = nn.Dropout(dropout)
        layers["fc2"] = linear(hidden, features)
        if dropout:
            layers["dropout2"] = nn.Dropout(dropout)
        super().__init__(layers)


class TokenBlock(nn.Module):
    """Mix the tokens, then the channels, each normalised first and summed with its input: [N, tokens, channels].

    mixing     of the tokens: attention in ViT, an MLP in Mixer
    mlp        of the channels
    eps        of the two LayerNorms
    drop_path  rate at which either branch is dropped in training
    """

    def __init__(
        self, channels: int, mixing: nn.Module, mlp: nn.Module, *, eps: float = 1e-6, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=eps)
        self.mixing = mixing
        self.norm2 = nn.LayerNorm(channels, eps=eps)
        self.mlp = mlp
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor) -> Tensor:
        # Not in place: under autocast the branches are in half precision, and the sums stay in single.
        tokens = tokens + self.drop_path(self.mixing(self.norm1(tokens)))
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)))


def rising_rates(rate: float, depth: int) -> list[float]:
    """The rate at which each of `depth` blocks is dropped: from 0 in the first to `rate` in the last, evenly.

    The linear decay of Huang et al., 2016, arXiv:1603.09382, section 3, with the first block always kept.

    Raises ValueError for a rate that is not in [0, 1).
    """
    DropPath(rate)  # Its refusal names the rate that was asked for, not a block's share of it.
    return [rate * block / max(depth - 1, 1) for block in range(depth)]


class MeanHead(nn.Module):
    """Normalise, average the tokens, one linear layer: [N, tokens, channels] -> [N, classes].

    norm  of the tokens, before they are averaged
    """

    def __init__(self, norm: nn.Module, channels: int, num_classes: int) -> None:
        super().__init__()
        self.norm = norm
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc(reduce(self.norm(tokens), "n t c -> n c", "mean"))


def lecun_normal_(weight: Tensor) -> None:
    """Fill with a normal distribution cut at two deviations, of variance 1 / fan-in: flax's default.

    fan-in is the elements of weight[0]. 0.87962566 is the deviation of the standard normal cut at ±2.
    """
    std = weight[0].numel() ** -0.5 / 0.87962566
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
