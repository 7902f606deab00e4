"""ResMLP: Feedforward networks for image classification with data-efficient training (Touvron et al., 2021).

arXiv:2105.03404. Every block mixes the tokens by one linear layer, then the channels by an MLP, each
residual. Nothing is normalised by statistics: a learned scale and shift for each channel, an affine
layer, stands before each branch, and a learned scale after it, small at the start, lets deep networks
begin near the identity. With 10 classes ResMLP-12 has the learning repository's count, 14.97 M; there
the residual path itself runs through the affine layers, ours is the paper's equations 2 and 3.
"""

import torch
from torch import Tensor, nn

from archs.classifier import Classifier, ImageSize
from archs.layers import DropPath
from archs.registry import Reference, register
from archs.tokens import TIMM_RENAMES, MeanHead, Mlp, Patches, TokenLinear, patch_count

PAPER = "ResMLP: Feedforward networks for image classification with data-efficient training, arXiv:2105.03404"
PATCH = 16
CHANNELS = 384
RENAMES = (
    (r"\.linear_tokens\.", ".mixing."),
    (r"\.mlp_channels\.", ".mlp."),
    (r"\.ls(\d)$", r".scale\1"),
    *TIMM_RENAMES,
)

TABLE = {
    "resmlp_12": (12, 0.1, 15_350_872, 3_009_739_776, "timm:resmlp_12_224"),
    "resmlp_24": (24, 1e-5, 30_020_680, 5_961_292_800, "timm:resmlp_24_224"),
}
"""Depth, the branches' scale at the start (facebookresearch/deit, resmlp_models.py); parameters, multiply-adds."""


class Affine(nn.Module):
    """alpha · x + beta in each channel: [..., channels] -> the same shape. The paper's equation 1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, 1, channels))
        self.beta = nn.Parameter(torch.zeros(1, 1, channels))

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.addcmul(self.beta, self.alpha, tokens)


class ResidualMlp(nn.Module):
    """Mix the tokens, then the channels, each scaled and summed with its input: [N, tokens, channels].

    The paper's equations 2 and 3.

    scale      of both branches at the start, for each channel
    drop_path  rate at which either branch is dropped in training
    """

    def __init__(self, channels: int, tokens: int, scale: float, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = Affine(channels)
        self.mixing = TokenLinear(tokens, tokens)
        self.scale1 = nn.Parameter(torch.full((channels,), scale))
        self.norm2 = Affine(channels)
        self.mlp = Mlp(channels, 4 * channels)
        self.scale2 = nn.Parameter(torch.full((channels,), scale))
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = self.add(tokens, self.scale1, self.mixing(self.norm1(tokens)))
        return self.add(tokens, self.scale2, self.mlp(self.norm2(tokens)))

    def add(self, tokens: Tensor, scale: Tensor, branch: Tensor) -> Tensor:
        """tokens + scale · branch, where dropping an image's branch is a scale of zero."""
        return tokens.addcmul(self.drop_path(scale.expand(tokens.shape[0], 1, -1)), branch)


class ResMLP(Classifier):
    """`depth` blocks of 384 channels over the 16-pixel patches of images of one size, then the tokens' mean.

    scale      of the branches at the start: 0.1 in 12 blocks, 1e-5 in 24
    drop_path  in training, rate at which a branch is dropped, the same in every block as in the authors' code

    Initialised as the authors' code does: linear layers from N(0, 0.02²) with zero biases, the patches'
    projection by torch's default.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        depth: int,
        scale: float,
        in_channels: int = 3,
        image_size: ImageSize = 224,
        drop_path: float = 0.0,
    ) -> None:
        tokens = patch_count(image_size, PATCH)
        blocks = (ResidualMlp(CHANNELS, tokens, scale, drop_path) for _ in range(depth))
        head = MeanHead(Affine(CHANNELS), CHANNELS, num_classes)
        super().__init__(Patches(in_channels, CHANNELS, PATCH), [nn.Sequential(*blocks)], head)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)


def declare(name: str, depth: int, start: float, parameters: int, cost: int, source: str) -> None:
    """Register a row of TABLE."""

    @register(
        name,
        paper=PAPER,
        year=2021,
        image_size=224,
        parameters=parameters,
        multiply_adds=cost,
        references=(Reference(source, RENAMES),),
        minimum_size=PATCH,
    )
    def build(
        num_classes: int,
        *,
        in_channels: int = 3,
        image_size: ImageSize = 224,
        drop_path: float = 0.0,
        scale: float = start,
    ) -> ResMLP:
        return ResMLP(
            num_classes,
            depth=depth,
            scale=scale,
            in_channels=in_channels,
            image_size=image_size,
            drop_path=drop_path,
        )


for _name, _row in TABLE.items():
    declare(_name, *_row)
