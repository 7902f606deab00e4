"""MLP-Mixer, ResMLP and gMLP: the papers' tables, the learning repository's counts, draws, what a block starts as."""

import pytest
import torch
from torch import nn

import archs
from archs.cost import multiply_adds
from archs.networks.mixing.gmlp import SpatialGate
from archs.networks.mixing.resmlp import ResidualMlp


def on_meta(name: str, num_classes: int = 10, **options) -> archs.Classifier:
    with torch.device("meta"):
        return archs.build(name, num_classes, **options)


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "layers", "width", "token_mlp", "channel_mlp", "millions"),
    # Tolstikhin et al., 2021, table 1; its parameters are without the head.
    [("mixer_s16", 8, 512, 256, 2048, 18), ("mixer_b16", 12, 768, 384, 3072, 59)],
)
def test_mixer_s_table(name, layers, width, token_mlp, channel_mlp, millions):
    model = on_meta(name)
    assert len(model.stages[0]) == layers
    for block in model.stages[0]:
        assert block.mixing.fc1.weight.shape == (token_mlp, 196)
        assert block.mlp.fc1.weight.shape == (channel_mlp, width)
    assert int((parameters(model) - parameters(model.head.fc)) / 1e6) == millions


@pytest.mark.parametrize(
    ("name", "layers", "millions", "billions"),
    # Touvron et al., 2021, table 1: ResMLP-S12 and S24, multiply-adds under "FLOPs".
    [("resmlp_12", 12, 15.4, 3.0), ("resmlp_24", 24, 30.0, 6.0)],
)
def test_resmlp_s_table(name, layers, millions, billions):
    model = on_meta(name, 1000)
    assert len(model.stages[0]) == layers
    assert parameters(model) / 1e6 == pytest.approx(millions, abs=0.06)
    assert multiply_adds(model, 224, 224) / 1e9 == pytest.approx(billions, abs=0.05)


@pytest.mark.parametrize(
    ("name", "layers", "width", "hidden", "millions", "billions"),
    # Liu et al., 2021, table 1: two operations a multiply-add.
    [("gmlp_ti16", 30, 128, 768, 5.9, 2.7), ("gmlp_s16", 30, 256, 1536, 19.5, 8.9)],
)
def test_gmlp_s_table(name, layers, width, hidden, millions, billions):
    model = on_meta(name, 1000)
    assert len(model.stages[0]) == layers
    assert {tuple(block.fc1.weight.shape) for block in model.stages[0]} == {(hidden, width)}
    assert parameters(model) / 1e6 == pytest.approx(millions, rel=0.01)
    assert 2 * multiply_adds(model, 224, 224) / 1e9 == pytest.approx(billions, rel=0.02)


@pytest.mark.parametrize(
    ("name", "image_size", "millions"),
    # The learning repository's gMLP has weights for 256 positions: those of 256-pixel images.
    [("mixer_d12", 224, 13.63), ("resmlp_12", 224, 14.97), ("gmlp_d6", 256, 2.97), ("gmlp_d6", 224, 2.81)],
)
def test_the_learning_repository_s_counts(name, image_size, millions):
    assert parameters(on_meta(name, image_size=image_size)) / 1e6 == pytest.approx(millions, abs=0.005)


def test_multiply_adds_of_the_learning_repository_s():
    """196 patches of 768 values; what a block multiplies, counted by hand."""
    mixer = 12 * (2 * 196 * 128 * 512 + 2 * 196 * 512 * 1024)
    assert multiply_adds(on_meta("mixer_d12"), 224, 224) == 196 * 768 * 512 + mixer + 512 * 10
    gated = 6 * (196 * 256 * 1024 + 196 * 196 * 512 + 196 * 512 * 256)
    assert multiply_adds(on_meta("gmlp_d6"), 224, 224) == 196 * 768 * 256 + gated + 256 * 10


@pytest.mark.parametrize(
    ("name", "tokens"), [("mixer_d12", (196, 512)), ("resmlp_12", (196, 384)), ("gmlp_d6", (196, 256))]
)
def test_every_block_keeps_the_tokens_shape(name, tokens):
    model = on_meta(name)
    features = torch.empty(2, 3, 224, 224, device="meta")
    for block in model.blocks():
        features = block(features)
        assert features.shape == (2, *tokens)


def test_what_the_learning_repository_s_do_otherwise():
    for name in ("mixer_d12", "gmlp_d6"):
        assert {m.eps for m in on_meta(name).modules() if isinstance(m, nn.LayerNorm)} == {1e-5}
    assert isinstance(on_meta("gmlp_d6").head.norm, nn.Identity)
    assert isinstance(on_meta("gmlp_s16").head.norm, nn.LayerNorm)


def test_a_spatial_gate_is_its_equation():
    """z1 ⊙ (W norm(z2) + b): Liu et al., 2021, equations 2 and 4."""
    gate = SpatialGate(8, tokens=5).double()
    hidden = torch.randn(2, 5, 8, dtype=torch.float64)
    first, second = hidden.split(4, dim=-1)
    mixed = gate.proj.weight @ nn.functional.layer_norm(second, (4,)) + gate.proj.bias[:, None]
    torch.testing.assert_close(gate(hidden), first * mixed, rtol=1e-10, atol=1e-12)


def test_a_dropped_branch_of_resmlp_is_left_out_of_that_image():
    block = ResidualMlp(6, tokens=4, scale=0.1, drop_path=0.5).double()
    tokens, branch = torch.randn(2, 64, 4, 6, dtype=torch.float64)
    scale = torch.randn(6, dtype=torch.float64)
    added = block.train().add(tokens, scale, branch) - tokens
    dropped = (added == 0).all(dim=(1, 2))
    assert 0 < dropped.sum() < 64
    torch.testing.assert_close(added[~dropped], (2 * scale * branch)[~dropped], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(block.eval().add(tokens, scale, branch), tokens + scale * branch, rtol=1e-10, atol=1e-12)


def test_mixer_s_draw():
    """google-research/vision_transformer, vit_jax/models_mixer.py: LeCun, zero biases, a zero head."""
    model = archs.build("mixer_s16", 10)
    block = model.stages[0][3]
    layers = (model.stem.conv, block.mixing.fc1, block.mixing.fc2, block.mlp.fc1, block.mlp.fc2)
    for layer, inputs in zip(layers, (768, 196, 256, 512, 2048), strict=True):
        assert layer.weight.std().item() == pytest.approx(inputs**-0.5, rel=0.02)
    assert not any(layer.bias.any() for layer in (*layers, model.head.fc))
    assert not model.head.fc.weight.any()


@pytest.mark.parametrize(("name", "scale"), [("resmlp_12", 0.1), ("resmlp_24", 1e-5)])
def test_resmlp_s_draw(name, scale):
    """facebookresearch/deit, resmlp_models.py."""
    model = archs.build(name, 10)
    block = model.stages[0][3]
    for layer in (block.mixing, block.mlp.fc1, block.mlp.fc2):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.02)
        assert not layer.bias.any()
    assert torch.equal(block.scale1, torch.full((384,), scale))
    assert torch.equal(block.scale2, torch.full((384,), scale))
    assert torch.equal(archs.build(name, 10, image_size=32, scale=0.5).stages[0][0].scale1, torch.full((384,), 0.5))


def test_gmlp_starts_without_looking_at_other_tokens():
    """Gates near zero with biases of one (Liu et al., 2021, section 2.1): a gate then passes half of its input on."""
    gate = archs.build("gmlp_ti16", 10).stages[0][3].gate
    hidden = torch.randn(2, 196, 768)
    torch.testing.assert_close(gate(hidden), hidden[..., :384], rtol=1e-3, atol=1e-3)
    assert gate.proj.weight.std().item() == pytest.approx(1e-6, rel=0.02)
    learning = archs.build("gmlp_d6", 10).stages[0][3].gate
    assert (learning.proj.bias == 1).all()
    # torch's default: uniform on ±1 / √fan-in.
    assert learning.proj.weight.std().item() == pytest.approx((1 / 3 / 196) ** 0.5, rel=0.02)
