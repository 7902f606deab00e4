"""An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale (Dosovitskiy et al., 2020).

arXiv:2010.11929. An image is cut into patches, each patch is projected to a token, and a plain
Transformer encoder runs over the tokens: no convolution beyond that projection, no hierarchy of maps.
Position is learned, one vector a token. The class is read from one more token, which starts equal for
every image and attends to the others. ViT-S is DeiT-S (Touvron et al., 2020, arXiv:2012.12877).
"""

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from archs.classifier import Classifier, ImageSize
from archs.layers import relu
from archs.registry import Reference, register
from archs.tokens import TIMM_RENAMES, Mlp, Patches, TokenBlock, lecun_normal_, patch_count, rising_rates

PAPER = "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale, arXiv:2010.11929"

RENAMES = {
    "timm": (
        (r"^cls_token$", "stem.class_token"),
        (r"^pos_embed$", "stem.positions"),
        (r"\.attn\.", ".mixing."),
        *TIMM_RENAMES,
    ),
    "torchvision": (
        (r"^class_token$", "stem.class_token"),
        (r"^encoder\.pos_embedding$", "stem.positions"),
        (r"^conv_proj\.", "stem.conv."),
        (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"stages.0.\1."),
        (r"\.ln_(\d)\.", r".norm\1."),
        (r"\.self_attention\.in_proj_", ".mixing.qkv."),
        (r"\.self_attention\.out_proj\.", ".mixing.proj."),
        (r"\.mlp\.0\.", ".mlp.fc1."),
        (r"\.mlp\.3\.", ".mlp.fc2."),
        (r"^encoder\.ln\.", "head.norm."),
        (r"^heads\.head\.", "head.fc."),
    ),
}
"""The library's key to ours. Both keep queries, keys and values in one matrix, as we do."""


class Embedding(Patches):
    """Patches after a class token, plus positions: [N, in_channels, H, W] -> [N, 1 + patches, channels].

    patches  how many an image has
    """

    def __init__(self, in_channels: int, channels: int, patch: int, patches: int, dropout: float = 0.0) -> None:
        super().__init__(in_channels, channels, patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, channels))
        self.positions = nn.Parameter(torch.empty(1, 1 + patches, channels))
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        nn.init.normal_(self.positions, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        patches = super().forward(images)
        tokens = torch.cat((self.class_token.expand(patches.shape[0], -1, -1), patches), dim=1)
        # In place: nothing keeps what joins the tokens.
        return self.dropout(tokens.add_(self.positions))


class Attention(nn.Module):
    """Multi-head self-attention: [N, tokens, channels] -> the same shape.

    Vaswani et al., 2017, arXiv:1706.03762, equation 1, of channels / heads channels a head.

    bias  of the projections to queries, keys and values
    """

    def __init__(self, channels: int, heads: int, *, bias: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels, bias=bias)
        self.proj = nn.Linear(channels, channels)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = (
            rearrange(part, "n t (h c) -> n h t c", h=self.heads) for part in self.qkv(tokens).chunk(3, dim=-1)
        )
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.dropout(self.proj(rearrange(attended, "n h t c -> n t (h c)")))


class ClassTokenHead(nn.Module):
    """Normalise the first token, one linear layer: [N, tokens, channels] -> [N, classes]."""

    def __init__(self, channels: int, num_classes: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=eps)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        # A copy: of a view the norm would keep all the tokens until the backward pass.
        return self.fc(self.norm(tokens[:, 0].contiguous()))


class VisionTransformer(Classifier):
    """`depth` blocks of attention and MLP over the patches of images of one size.

    patch      side of a patch in pixels
    hidden     channels inside the MLPs
    dropout    after each linear layer but qkv, and after the positions (the paper's appendix B.1)
    drop_path  in training, rate at which a branch is dropped in the last block; in the others less
    qkv_bias   of the projections to queries, keys and values
    act        the MLPs' activation
    eps        of the LayerNorms
    """

    def __init__(
        self,
        num_classes: int,
        *,
        patch: int,
        channels: int,
        depth: int,
        heads: int,
        hidden: int,
        in_channels: int = 3,
        image_size: ImageSize = 224,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        qkv_bias: bool = True,
        act: Callable[[], nn.Module] = nn.GELU,
        eps: float = 1e-6,
    ) -> None:
        stem = Embedding(in_channels, channels, patch, patch_count(image_size, patch), dropout)
        blocks = (
            TokenBlock(
                channels,
                Attention(channels, heads, bias=qkv_bias, dropout=dropout),
                Mlp(channels, hidden, act, dropout),
                eps=eps,
                drop_path=rate,
            )
            for rate in rising_rates(drop_path, depth)
        )
        super().__init__(stem, [nn.Sequential(*blocks)], ClassTokenHead(channels, num_classes, eps))


def initialise(model: VisionTransformer) -> None:
    """Draw as the authors' code does (google-research/vision_transformer, vit_jax/models_vit.py).

    Linear layers uniformly by Glorot, queries, keys and values each on its own; biases zero, those of the MLPs
    from N(0, 1e-6²); the patches' projection by LeCun; positions from N(0, 0.02²); class token and head zero.
    """
    lecun_normal_(model.stem.conv.weight)
    nn.init.zeros_(model.stem.conv.bias)
    for block in model.stages[0]:
        attention = block.mixing
        for weight in (*attention.qkv.weight.detach().chunk(3), attention.proj.weight):
            nn.init.xavier_uniform_(weight)
        for layer in (attention.qkv, attention.proj):
            nn.init.zeros_(layer.bias)
        for layer in (block.mlp.fc1, block.mlp.fc2):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.normal_(layer.bias, std=1e-6)
    nn.init.zeros_(model.head.fc.weight)
    nn.init.zeros_(model.head.fc.bias)


TABLE = {
    "vit_s16": (16, 384, 12, 6, 22_050_664, 4_598_882_304, ("timm:vit_small_patch16_224",)),
    "vit_b16": (16, 768, 12, 12, 86_567_656, 17_563_828_224, ("torchvision:vit_b_16", "timm:vit_base_patch16_224")),
    "vit_b32": (32, 768, 12, 12, 88_224_232, 4_409_186_304, ("torchvision:vit_b_32", "timm:vit_base_patch32_224")),
}
"""Patch, channels, depth, heads (the paper's table 1); parameters, multiply-adds; whose weights load."""


def declare(
    name: str, patch: int, channels: int, depth: int, heads: int, parameters: int, cost: int, sources: tuple[str, ...]
) -> None:
    """Register a row of TABLE. The MLPs are four times as wide as the tokens."""

    @register(
        name,
        paper=PAPER,
        year=2020,
        image_size=224,
        parameters=parameters,
        multiply_adds=cost,
        references=tuple(Reference(source, RENAMES[source.partition(":")[0]]) for source in sources),
        minimum_size=patch,
    )
    def build(
        num_classes: int,
        *,
        in_channels: int = 3,
        image_size: ImageSize = 224,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> VisionTransformer:
        model = VisionTransformer(
            num_classes,
            patch=patch,
            channels=channels,
            depth=depth,
            heads=heads,
            hidden=4 * channels,
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
    "vit_d6",
    paper=PAPER,
    year=2020,
    image_size=224,
    parameters=54_606_824,
    multiply_adds=2_702_467_072,
    minimum_size=32,
)
def vit_d6(
    num_classes: int, *, in_channels: int = 3, image_size: ImageSize = 224, dropout: float = 0.1, drop_path: float = 0.0
) -> VisionTransformer:
    """The learning repository's (Mayurji/Image-Classification-PyTorch, ViT.py), after lucidrains/vit-pytorch.

    Larger patches, fewer and wider blocks: 32 pixels, six blocks of 1,024 channels, MLPs of 2,048, 16 heads of 64.
    Its count, 53.59 M with 10 classes, is that of queries, keys and values without biases (53.61 M with), a class
    token, LayerNorm before each branch and before the linear head, and none around the projection of the patches
    (53.60 M with lucidrains' later two). Also as there: ReLU in the MLPs, LayerNorms with torch's epsilon, 1e-5,
    dropout of 0.1, class token and positions from N(0, 1), the rest drawn by torch's defaults.
    """
    model = VisionTransformer(
        num_classes,
        patch=32,
        channels=1024,
        depth=6,
        heads=16,
        hidden=2048,
        in_channels=in_channels,
        image_size=image_size,
        dropout=dropout,
        drop_path=drop_path,
        qkv_bias=False,
        act=relu,
        eps=1e-5,
    )
    nn.init.normal_(model.stem.class_token)
    nn.init.normal_(model.stem.positions)
    return model
