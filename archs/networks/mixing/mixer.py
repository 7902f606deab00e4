"""MLP-Mixer: An all-MLP Architecture for Vision (Tolstikhin et al., 2021, arXiv:2105.01601).

Neither convolutions nor attention: patches become tokens, and every block runs two MLPs. The first
mixes the tokens, the same in every channel; the second mixes the channels, the same in every token.
The token MLP has a weight for every place, so positions need no embedding and the image size is fixed.
"""

from torch import nn

from archs.classifier import Classifier, ImageSize
from archs.registry import Reference, register
from archs.tokens import (
    TIMM_RENAMES,
    MeanHead,
    Mlp,
    Patches,
    TokenBlock,
    TokenLinear,
    lecun_normal_,
    patch_count,
    rising_rates,
)

PAPER = "MLP-Mixer: An all-MLP Architecture for Vision, arXiv:2105.01601"
PATCH = 16
RENAMES = ((r"\.mlp_tokens\.", ".mixing."), (r"\.mlp_channels\.", ".mlp."), *TIMM_RENAMES)

TABLE = {
    "mixer_s16": (8, 512, 256, 2048, 18_528_264, 3_776_958_464, "timm:mixer_s16_224"),
    "mixer_b16": (12, 768, 384, 3072, 59_880_472, 12_601_767_936, "timm:mixer_b16_224"),
}
"""Depth, channels, widths of the token and the channel MLPs (the paper's table 1); parameters, multiply-adds."""
UNPUBLISHED = ("mixer_s16",)
"""Those that timm has no trained weights of."""


class Mixer(Classifier):
    """`depth` blocks over the 16-pixel patches of images of one size, then the tokens' mean.

    token_hidden, channel_hidden  widths inside the two MLPs: the paper's D_S and D_C
    dropout                       after each of their linear layers
    drop_path                     in training, rate at which a branch is dropped in the last block; in the others less
    eps                           of the LayerNorms
    """

    def __init__(
        self,
        num_classes: int,
        *,
        depth: int,
        channels: int,
        token_hidden: int,
        channel_hidden: int,
        in_channels: int = 3,
        image_size: ImageSize = 224,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        eps: float = 1e-6,
    ) -> None:
        tokens = patch_count(image_size, PATCH)
        blocks = (
            TokenBlock(
                channels,
                Mlp(tokens, token_hidden, dropout=dropout, linear=TokenLinear),
                Mlp(channels, channel_hidden, dropout=dropout),
                eps=eps,
                drop_path=rate,
            )
            for rate in rising_rates(drop_path, depth)
        )
        head = MeanHead(nn.LayerNorm(channels, eps=eps), channels, num_classes)
        super().__init__(Patches(in_channels, channels, PATCH), [nn.Sequential(*blocks)], head)


def initialise(model: Mixer) -> None:
    """Draw as the authors' code does (google-research/vision_transformer, vit_jax/models_mixer.py).

    Every weight by LeCun, biases zero, the head zero.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            lecun_normal_(module.weight)
            nn.init.zeros_(module.bias)
    nn.init.zeros_(model.head.fc.weight)


def declare(
    name: str,
    depth: int,
    channels: int,
    token_hidden: int,
    channel_hidden: int,
    parameters: int,
    cost: int,
    source: str,
) -> None:
    """Register a row of TABLE."""

    @register(
        name,
        paper=PAPER,
        year=2021,
        image_size=224,
        parameters=parameters,
        multiply_adds=cost,
        references=(Reference(source, RENAMES, published=name not in UNPUBLISHED),),
        minimum_size=PATCH,
    )
    def build(
        num_classes: int,
        *,
        in_channels: int = 3,
        image_size: ImageSize = 224,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> Mixer:
        model = Mixer(
            num_classes,
            depth=depth,
            channels=channels,
            token_hidden=token_hidden,
            channel_hidden=channel_hidden,
            in_channels=in_channels,
            image_size=image_size,
            dropout=dropout,
            drop_path=drop_path,
        )
        initialise(model)
        return model


for _name, _row in TABLE.items():
    declare(_name, *_row)


@register(
    "mixer_d12",
    paper=PAPER,
    year=2021,
    image_size=224,
    parameters=14_139_672,
    multiply_adds=2_852_114_432,
    minimum_size=PATCH,
)
def mixer_d12(
    num_classes: int, *, in_channels: int = 3, image_size: ImageSize = 224, dropout: float = 0.0, drop_path: float = 0.0
) -> Mixer:
    """The learning repository's (Mayurji/Image-Classification-PyTorch, MLPMixer.py): deeper and narrower than S/16.

    Twelve blocks of 512 channels, token MLPs of 128, channel MLPs of 1,024; 13.63 M parameters with 10 classes.
    LayerNorms with torch's epsilon, 1e-5; weights drawn by torch's defaults, as there.
    """
    return Mixer(
        num_classes,
        depth=12,
        channels=512,
        token_hidden=128,
        channel_hidden=1024,
        in_channels=in_channels,
        image_size=image_size,
        dropout=dropout,
        drop_path=drop_path,
        eps=1e-5,
    )
