"""Pay Attention to MLPs (Liu et al., 2021, arXiv:2105.08050): gMLP.

One MLP a block, over the channels, and inside it a gate over the tokens: half of the hidden channels,
normalised and mixed across the tokens by a linear layer, multiply the other half. That layer starts
near zero with a bias of one, so a block starts as a plain MLP on every token and learns how far to
look. No attention and no positions: its weights know every place, so the image size is fixed.
"""

from torch import Tensor, nn

from archs.classifier import Classifier, ImageSize
from archs.layers import DropPath
from archs.registry import Reference, register
from archs.tokens import TIMM_RENAMES, MeanHead, Patches, TokenLinear, lecun_normal_, patch_count, rising_rates

PAPER = "Pay Attention to MLPs, arXiv:2105.08050"
PATCH = 16
RENAMES = ((r"\.mlp_channels\.", "."), *TIMM_RENAMES)

TABLE = {
    "gmlp_ti16": (30, 128, 768, 5_867_328, 1_328_989_184, "timm:gmlp_ti16_224"),
    "gmlp_s16": (30, 256, 1536, 19_422_656, 4_392_060_928, "timm:gmlp_s16_224"),
}
"""Depth, channels, hidden channels (the paper's table 1); parameters, multiply-adds; whose structure it is."""
UNPUBLISHED = ("gmlp_ti16",)
"""Those that timm has no trained weights of."""


class SpatialGate(nn.Module):
    """Multiply half of the channels by the other half mixed across tokens: [N, tokens, C] -> [N, tokens, C / 2].

    The paper's equation 4.
    """

    def __init__(self, channels: int, tokens: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels // 2)
        self.proj = TokenLinear(tokens, tokens)

    def forward(self, hidden: Tensor) -> Tensor:
        content, gate = hidden.chunk(2, dim=-1)
        return content * self.proj(self.norm(gate))


class GatedMlpBlock(nn.Module):
    """tokens + fc2(gate(act(fc1(norm(tokens))))): [N, tokens, channels] -> the same shape. The paper's equation 1.

    hidden     channels between fc1 and the gate, which halves them
    eps        of the first LayerNorm; the gate's has 1e-5
    drop_path  rate at which the branch is dropped in training
    """

    def __init__(self, channels: int, hidden: int, tokens: int, *, eps: float = 1e-6, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=eps)
        self.fc1 = nn.Linear(channels, hidden)
        self.act = nn.GELU()
        self.gate = SpatialGate(hidden, tokens)
        self.fc2 = nn.Linear(hidden // 2, channels)
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + self.drop_path(self.fc2(self.gate(self.act(self.fc1(self.norm(tokens))))))


class GMLP(Classifier):
    """`depth` blocks over the 16-pixel patches of images of one size, then the tokens' mean.

    hidden     channels in a block before the gate halves them: the paper's d_ffn
    drop_path  in training, rate at which the branch is dropped in the last block; in the others less
    eps        of the blocks' first LayerNorms
    last_norm  a LayerNorm before the mean
    """

    def __init__(
        self,
        num_classes: int,
        *,
        depth: int,
        channels: int,
        hidden: int,
        in_channels: int = 3,
        image_size: ImageSize = 224,
        drop_path: float = 0.0,
        eps: float = 1e-6,
        last_norm: bool = True,
    ) -> None:
        tokens = patch_count(image_size, PATCH)
        blocks = (
            GatedMlpBlock(channels, hidden, tokens, eps=eps, drop_path=rate) for rate in rising_rates(drop_path, depth)
        )
        head = MeanHead(nn.LayerNorm(channels, eps=eps) if last_norm else nn.Identity(), channels, num_classes)
        super().__init__(Patches(in_channels, channels, PATCH), [nn.Sequential(*blocks)], head)
        for block in self.stages[0]:
            nn.init.ones_(block.gate.proj.bias)


def initialise(model: GMLP) -> None:
    """Draw the gates near zero as the paper's section 2.1 asks, and the rest, of which it is silent, as timm does.

    Gates from N(0, 1e-6²) with biases of one; fc1 and fc2 uniformly by Glorot, their biases from N(0, 1e-6²);
    the patches' projection by LeCun; the head zero.
    """
    lecun_normal_(model.stem.conv.weight)
    nn.init.zeros_(model.stem.conv.bias)
    for block in model.stages[0]:
        for layer in (block.fc1, block.fc2):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.normal_(layer.bias, std=1e-6)
        nn.init.normal_(block.gate.proj.weight, std=1e-6)
    nn.init.zeros_(model.head.fc.weight)
    nn.init.zeros_(model.head.fc.bias)


def declare(name: str, depth: int, channels: int, hidden: int, parameters: int, cost: int, source: str) -> None:
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
    def build(num_classes: int, *, in_channels: int = 3, image_size: ImageSize = 224, drop_path: float = 0.0) -> GMLP:
        model = GMLP(
            num_classes,
            depth=depth,
            channels=channels,
            hidden=hidden,
            in_channels=in_channels,
            image_size=image_size,
            drop_path=drop_path,
        )
        initialise(model)
        return model


for _name, _row in TABLE.items():
    declare(_name, *_row)


@register(
    "gmlp_d6",
    paper=PAPER,
    year=2021,
    image_size=224,
    parameters=3_061_728,
    multiply_adds=619_227_136,
    minimum_size=PATCH,
)
def gmlp_d6(num_classes: int, *, in_channels: int = 3, image_size: ImageSize = 224, drop_path: float = 0.0) -> GMLP:
    """The learning repository's (Mayurji/Image-Classification-PyTorch, gMLP.py): six blocks of 256 channels.

    What it calls an FFN of 512 is the width after the gate; the paper's d_ffn is 1,024. Its spatial projection is
    written for 256 positions (2.97 M parameters with 10 classes), though 224-pixel images have 196 patches: ours has
    the image's true number, 2.81 M. No LayerNorm before the mean; the LayerNorms have torch's epsilon, 1e-5, and
    weights are drawn by torch's defaults, but for the gates' biases of one, as there.
    """
    return GMLP(
        num_classes,
        depth=6,
        channels=256,
        hidden=1024,
        in_channels=in_channels,
        image_size=image_size,
        drop_path=drop_path,
        eps=1e-5,
        last_norm=False,
    )
