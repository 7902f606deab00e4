"""The layers that the networks over patches share: an image becomes [N, tokens, channels], and stays that."""

from collections import OrderedDict
from collections.abc import Callable

from einops import rearrange, reduce
from torch import Tensor, nn


class Patches(nn.Module):
    """Cut images into squares and project each: [N, in_channels, H, W] -> [N, (H / patch)·(W / patch), channels].

    Dosovitskiy et al., 2020, arXiv:2010.11929, equation 1; the projection is a convolution whose stride is its size.
    """

    def __init__(self, in_channels: int, channels: int, patch: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, patch, patch)

    def forward(self, images: Tensor) -> Tensor:
        # A view where the convolution's output is channels-last.
        return rearrange(self.conv(images), "n c h w -> n (h w) c")


def patch_count(image_size: int, patch: int) -> int:
    """Tokens of a square image. Raises ValueError where the patches do not tile it, naming the nearest sizes."""
    if image_size % patch or image_size < patch:
        below, above = image_size // patch * patch, -(-image_size // patch) * patch
        would = f"{below} or {above}" if below and below != above else f"{above}"
        raise ValueError(
            f"{patch}x{patch} patches do not tile an image of {image_size}x{image_size} pixels; {would} would do"
        )
    return (image_size // patch) ** 2


class Mlp(nn.Sequential):
    """Two linear layers over the last axis with an activation between: [..., channels] -> [..., channels]."""

    def __init__(
        self, channels: int, hidden: int, act: Callable[[], nn.Module] = nn.GELU, dropout: float = 0.0
    ) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict(fc1=nn.Linear(channels, hidden), act=act())
        if dropout:
            layers["dropout1"] = nn.Dropout(dropout)
        layers["fc2"] = nn.Linear(hidden, channels)
        if dropout:
            layers["dropout2"] = nn.Dropout(dropout)
        super().__init__(layers)


class MeanHead(nn.Module):
    """Normalise, average the tokens, one linear layer: [N, tokens, channels] -> [N, classes].

    norm  of the tokens, before they are averaged
    """

    def __init__(self, norm: nn.Module, channels: int, num_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = norm
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc(self.dropout(reduce(self.norm(tokens), "n t c -> n c", "mean")))
