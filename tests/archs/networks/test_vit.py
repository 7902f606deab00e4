"""ViT: the paper's table, attention's formula, the learning repository's variant, the authors' draw."""

import pytest
import torch
from torch import nn

import archs
from archs.cost import multiply_adds
from archs.networks.mixing.vit import Attention, ClassTokenHead, Embedding


def on_meta(name: str, **options) -> archs.Classifier:
    with torch.device("meta"):
        return archs.build(name, 10, **options)


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "patch", "layers", "width", "mlp", "heads", "millions"),
    [
        # Dosovitskiy et al., 2020, table 1, ViT-Base; parameters are given for 16-pixel patches.
        ("vit_b16", 16, 12, 768, 3072, 12, 86),
        ("vit_b32", 32, 12, 768, 3072, 12, None),
        # Touvron et al., 2020 (DeiT), table 1, DeiT-S; its MLPs are four times as wide too (section 3).
        ("vit_s16", 16, 12, 384, 1536, 6, 22),
    ],
)
def test_the_papers_tables(name, patch, layers, width, mlp, heads, millions):
    model = on_meta(name)
    blocks = list(model.stages[0])
    assert len(blocks) == layers
    assert {block.mixing.heads for block in blocks} == {heads}
    assert {tuple(block.mlp.fc1.weight.shape) for block in blocks} == {(mlp, width)}
    assert model.stem.conv.kernel_size == model.stem.conv.stride == (patch, patch)
    tokens = 1 + (224 // patch) ** 2
    images = torch.empty(1, 3, 224, 224, device="meta")
    shapes = [images := block(images) for block in model.blocks()]
    assert {tuple(tensor.shape) for tensor in shapes} == {(1, tokens, width)}
    if millions:
        assert parameters(model) / 1e6 == pytest.approx(millions, abs=0.5)


def test_attention_is_its_formula():
    """softmax(Q Kᵀ / √d) V in each head, the heads' channels side by side (Vaswani et al., 2017, equation 1)."""
    layer = Attention(12, heads=3).double()
    tokens = torch.randn(2, 5, 12, dtype=torch.float64)
    query, key, value = layer.qkv(tokens).split(12, dim=-1)
    heads = []
    for first in (0, 4, 8):
        q, k, v = (part[..., first : first + 4] for part in (query, key, value))
        heads.append((q @ k.mT / 4**0.5).softmax(dim=-1) @ v)
    torch.testing.assert_close(layer(tokens), layer.proj(torch.cat(heads, dim=-1)), rtol=1e-10, atol=1e-12)


def test_the_head_sees_the_class_token_and_keeps_no_other():
    head, tokens, kept = ClassTokenHead(6, 3, eps=1e-6), torch.randn(2, 5, 6, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        head(tokens).square().sum().backward()
    assert tokens.grad[:, 0].all()
    assert not tokens.grad[:, 1:].any()
    assert kept
    assert tokens.untyped_storage().data_ptr() not in {tensor.untyped_storage().data_ptr() for tensor in kept}


def test_positions_and_class_token_join_the_patches():
    stem = Embedding(3, 6, patch=4, patches=6).double()
    nn.init.normal_(stem.class_token)
    images = torch.randn(2, 3, 8, 12, dtype=torch.float64)
    tokens = stem(images) - stem.positions
    torch.testing.assert_close(tokens[:, 0], stem.class_token[:, 0].expand(2, -1))
    torch.testing.assert_close(tokens[:, 1:], stem.conv(images).flatten(2).mT)


def test_dropout_is_where_the_paper_has_it():
    """After every linear layer but qkv, and after the positions (appendix B.1); the learning repository's is 0.1."""
    for name, options, rate in (("vit_b16", {"dropout": 0.3}, 0.3), ("vit_d6", {}, 0.1), ("vit_b16", {}, None)):
        model = on_meta(name, **options)
        rates = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
        assert rates == ([rate] * (1 + 3 * len(model.stages[0])) if rate else [])
    with pytest.raises(ValueError, match="between 0 and 1"):
        on_meta("vit_b16", dropout=1.5)


class TestTheLearningRepository:
    """Mayurji/Image-Classification-PyTorch, ViT.py and main.py."""

    def test_count(self):
        assert parameters(on_meta("vit_d6")) / 1e6 == pytest.approx(53.59, abs=0.005)

    def test_count_of_what_it_is_not(self):
        """Biases of queries, keys and values, or LayerNorms around the projection, would show in the second decimal."""
        count = parameters(on_meta("vit_d6"))
        assert round((count + 6 * 3 * 1024) / 1e6, 2) == 53.61
        assert round((count + 2 * 3 * 32 * 32 + 2 * 1024) / 1e6, 2) == 53.60

    def test_multiply_adds(self):
        """49 patches, a class token; a block has 4·1024² of attention, 2·1024·2048 of the MLP, 2·50·1024 of scores."""
        block = 50 * (4 * 1024**2 + 2 * 1024 * 2048 + 2 * 50 * 1024)
        assert multiply_adds(on_meta("vit_d6"), 224, 224) == 49 * 3072 * 1024 + 6 * block + 1024 * 10

    def test_layers(self):
        model = on_meta("vit_d6")
        assert all(block.mixing.qkv.bias is None and block.mixing.heads == 16 for block in model.stages[0])
        assert all(isinstance(block.mlp.act, nn.ReLU) for block in model.stages[0])
        assert {module.eps for module in model.modules() if isinstance(module, nn.LayerNorm)} == {1e-5}

    def test_draw(self):
        model = archs.build("vit_d6", 10)
        assert model.stem.class_token.std().item() == pytest.approx(1, abs=0.1)
        assert model.stem.positions.std().item() == pytest.approx(1, abs=0.02)
        # torch's default: uniform on ±1 / √fan-in.
        assert model.stages[0][0].mlp.fc1.weight.std().item() == pytest.approx((1 / 3 / 1024) ** 0.5, rel=0.01)


def test_the_authors_draw():
    """google-research/vision_transformer, vit_jax/models_vit.py; Glorot's bound is √(6 / (fan-in + fan-out))."""
    model = archs.build("vit_s16", 10, image_size=64)
    block = model.stages[0][3]
    for weight, bound in (
        (block.mixing.qkv.weight, (6 / 768) ** 0.5),
        (block.mixing.proj.weight, (6 / 768) ** 0.5),
        (block.mlp.fc1.weight, (6 / 1920) ** 0.5),
        (block.mlp.fc2.weight, (6 / 1920) ** 0.5),
    ):
        assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.01)
        assert weight.abs().max().item() == pytest.approx(bound, rel=0.001)
    assert model.stem.positions.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.stem.conv.weight.std().item() == pytest.approx(768**-0.5, rel=0.01)
    assert block.mlp.fc1.bias.std().item() == pytest.approx(1e-6, rel=0.1)
    zeros = (model.stem.class_token, model.stem.conv.bias, block.mixing.qkv.bias, block.mixing.proj.bias)
    assert not any(tensor.any() for tensor in (*zeros, model.head.fc.weight, model.head.fc.bias))
