"""The layers over tokens against their formulas written out."""

import pytest
import torch
from einops import einsum, rearrange
from torch import nn

import archs
from archs.tokens import MeanHead, Mlp, Patches, TokenBlock, TokenLinear, lecun_normal_, patch_count, rising_rates

FIXED = [name for name in archs.names() if "image_size" in archs.registry.options_of(name)]
"""The networks with one weight a place."""


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_patches_are_a_linear_layer_of_their_pixels(layout):
    patches = Patches(3, 8, 4).double().to(memory_format=layout)
    images = torch.randn(2, 3, 8, 12, dtype=torch.float64).to(memory_format=layout)
    pixels = rearrange(images, "n c (h p) (w q) -> n (h w) (c p q)", p=4, q=4)
    expected = nn.functional.linear(pixels, patches.conv.weight.flatten(1), patches.conv.bias)
    tokens = patches(images)
    torch.testing.assert_close(tokens, expected, rtol=1e-10, atol=1e-12)
    assert tokens.is_contiguous()


@pytest.mark.parametrize(("size", "patch", "count"), [(224, 16, 196), (224, 32, 49), (16, 16, 1)])
def test_patch_count(size, patch, count):
    assert patch_count(size, patch) == count


@pytest.mark.parametrize(
    ("size", "patch", "told"), [(100, 16, "96 or 112 would do"), (10, 16, "; 16 would do"), (0, 16, "; 16 would do")]
)
def test_sizes_that_patches_do_not_tile_are_told_the_nearest(size, patch, told):
    with pytest.raises(ValueError, match=told):
        patch_count(size, patch)


@pytest.mark.parametrize("name", FIXED)
def test_a_size_that_the_patches_do_not_tile_is_refused_when_built(name):
    with torch.device("meta"), pytest.raises(ValueError, match="do not tile an image of 100x100 pixels; 96 or"):
        archs.build(name, 10, image_size=100)


@pytest.mark.parametrize("name", FIXED)
def test_images_of_another_size_are_refused_when_run(name):
    with torch.device("meta"):
        model = archs.build(name, 10, image_size=64)
        with pytest.raises(ValueError, match=rf"{name} was built for 64x64 pixels, not \(96, 64\)"):
            model(torch.empty(1, 3, 96, 64))


def test_a_token_linear_is_a_linear_layer_between_two_transposes():
    layer = TokenLinear(6, 4).double()
    tokens = torch.randn(3, 6, 5, dtype=torch.float64)
    results = []
    for forward in (layer, lambda seen: nn.functional.linear(seen.mT, layer.weight, layer.bias).mT):
        seen = tokens.clone().requires_grad_()
        output = forward(seen)
        gradients = torch.autograd.grad(output.square().sum(), (seen, layer.weight, layer.bias))
        results.append((output, *gradients))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("autocast", [False, True])
def test_a_token_linear_keeps_its_input_and_one_copy_of_its_weight(autocast):
    layer, tokens = TokenLinear(16, 24), torch.randn(8, 16, 4)
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        output = layer(tokens.requires_grad_())
    width = 2 if autocast else 4
    assert output.element_size() == width
    assert sum(kept.values()) == width * (tokens.numel() + layer.weight.numel())


def test_a_block_is_its_two_equations():
    block = TokenBlock(6, Mlp(4, 3, linear=TokenLinear), Mlp(6, 5), eps=1e-3).double()
    tokens = torch.randn(2, 4, 6, dtype=torch.float64)

    def normalised(x):
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-3).sqrt()

    def mlp(layers, x):
        return layers.fc2(nn.functional.gelu(layers.fc1(x)))

    middle = tokens + mlp(block.mixing, normalised(tokens))
    expected = middle + mlp(block.mlp, normalised(middle))
    torch.testing.assert_close(block(tokens), expected, rtol=1e-10, atol=1e-12)


def test_dropout_follows_each_linear_layer_of_an_mlp():
    kinds = [type(layer) for layer in Mlp(4, 8, dropout=0.5)]
    assert kinds == [nn.Linear, nn.GELU, nn.Dropout, nn.Linear, nn.Dropout]
    assert [type(layer) for layer in Mlp(4, 8, act=nn.ReLU)] == [nn.Linear, nn.ReLU, nn.Linear]


def test_rates_rise_from_none_in_the_first_block():
    assert rising_rates(0.5, 3) == [0, 0.25, 0.5]
    assert rising_rates(0.5, 1) == [0]
    with pytest.raises(ValueError, match=r"a rate in \[0, 1\), not 1.5"):
        rising_rates(1.5, 12)


@pytest.mark.parametrize("name", FIXED)
def test_drop_path_is_for_training_and_its_rate_is_the_last_block_s(name):
    with torch.device("meta"):
        model = archs.build(name, 10, drop_path=0.2)
        with pytest.raises(ValueError, match=r"a rate in \[0, 1\), not 1"):
            archs.build(name, 10, drop_path=1.0)
    rates = [block.drop_path.rate for block in model.stages[0]]
    assert rates[-1] == 0.2
    assert rates == sorted(rates)
    assert name.startswith("resmlp") or rates[0] == 0


def test_the_mean_head_normalises_before_it_averages():
    head = MeanHead(nn.LayerNorm(6), 6, 3).double()
    tokens = torch.randn(2, 4, 6, dtype=torch.float64)
    means = einsum(head.norm(tokens), "n t c -> n c") / 4
    torch.testing.assert_close(head(tokens), means @ head.fc.weight.mT + head.fc.bias, rtol=1e-10, atol=1e-12)


def test_lecun_s_draw():
    """Variance 1 / fan-in after the cut at two deviations of the uncut normal."""
    weight = torch.empty(400, 3, 5, 5)
    lecun_normal_(weight)
    assert weight.std().item() == pytest.approx(75**-0.5, rel=0.02)
    assert weight.abs().max().item() <= 2 * 75**-0.5 / 0.87962566
    assert weight.abs().max().item() > 1.9 * 75**-0.5 / 0.87962566
