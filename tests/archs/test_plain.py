"""The plain chains: VGG, Network in Network, SqueezeNet, Darknet-19, and the heads that they share."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import archs
from archs.cost import multiply_adds
from archs.networks.sequential.squeezenet import Fire
from archs.plain import ConvHead, GridHead, GridPool


def on_meta(name: str, num_classes: int, **options) -> nn.Module:
    with torch.device("meta"):
        return archs.build(name, num_classes, **options)


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def shapes_after(model: nn.Module, kind: type[nn.Module], side: int = 224) -> list[tuple[int, ...]]:
    """Output shapes [C, H, W] of every layer of one kind, in the order in which they run, for one image."""
    shapes = []
    for module in model.modules():
        if isinstance(module, kind):
            module.register_forward_hook(lambda _, __, output: shapes.append(tuple(output.shape[1:])))
    model.eval()(torch.empty(1, 3, side, side, device="meta"))
    return shapes


@pytest.mark.parametrize(
    ("name", "millions"),
    # What the learning repository counts.
    [("vgg11", 128.81), ("nin", 2.02), ("squeezenet1_1", 0.73)],
)
def test_parameters_with_ten_classes(name, millions):
    assert round(parameters(on_meta(name, 10)) / 1e6, 2) == millions


@pytest.mark.parametrize(("name", "millions"), [("vgg11", 133), ("vgg13", 133), ("vgg16", 138), ("vgg19", 144)])
def test_vgg_has_the_parameters_of_table_2(name, millions):
    """Table 2 of the paper, in millions; BatchNorm adds two a channel, and its convolutions keep their biases."""
    assert round(parameters(on_meta(name, 1000)) / 1e6) == millions
    channels = sum(layer.out_channels for layer in on_meta(name, 1000).modules() if isinstance(layer, nn.Conv2d))
    assert parameters(on_meta(f"{name}_bn", 1000)) - parameters(on_meta(name, 1000)) == 2 * channels


def test_vgg16_is_column_d_of_table_1():
    maps = [(64, 224)] * 2 + [(128, 112)] * 2 + [(256, 56)] * 3 + [(512, 28)] * 3 + [(512, 14)] * 3
    assert shapes_after(on_meta("vgg16", 1000), nn.Conv2d) == [(width, side, side) for width, side in maps]
    assert shapes_after(on_meta("vgg16", 1000), nn.MaxPool2d)[-1] == (512, 7, 7)


def test_vgg_initialisation():
    """Convolutions N(0, 2 / fan-out), linear layers N(0, 0.01²), no bias: as torchvision draws."""
    for layer in archs.build("vgg11_bn", 10).modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            std = (2 / (9 * layer.out_channels)) ** 0.5 if isinstance(layer, nn.Conv2d) else 0.01
            assert layer.weight.std().item() == pytest.approx(std, rel=0.05)
            assert not layer.bias.any()


def test_nin_is_the_model_zoo_s():
    """Maps of 54, 27, 13 and 6 pixels and widths of Caffe's nin_imagenet, whose last pooling is 6x6."""
    model = on_meta("nin", 1000, last_channels=1024)
    maps = [(96, 54)] * 3 + [(256, 27)] * 3 + [(384, 13)] * 3 + [(1024, 6)] * 2 + [(1000, 6)]
    assert shapes_after(model, nn.Conv2d) == [(width, side, side) for width, side in maps]
    # k·k·in·out and a bias a channel, from the same definition; the authors' snapshot is said to be of 29 MB.
    widths = [(363, 96), (96, 96), (96, 96), (2400, 256), (256, 256), (256, 256), (2304, 384), (384, 384), (384, 384)]
    widths += [(3456, 1024), (1024, 1024), (1024, 1000)]
    assert parameters(model) == sum((inputs + 1) * outputs for inputs, outputs in widths)
    assert 4 * parameters(model) / 2**20 == pytest.approx(29, abs=0.1)


def test_nin_has_as_many_channels_as_classes_at_its_end():
    maps = shapes_after(on_meta("nin", 10), nn.Conv2d)
    assert maps[-3:] == [(10, 6, 6)] * 3
    with pytest.raises(ValueError, match="at least one channel"):
        on_meta("nin", 10, last_channels=0)


def test_nin_and_darknet19_keep_the_signal():
    """Weights of variance 2 / fan-in: He et al., 2015, equation 10; biases zero."""
    nin, darknet19 = archs.build("nin", 300), archs.build("darknet19", 300)
    for layers in (*nin.blocks(), darknet19):
        for layer in layers.modules():
            if isinstance(layer, nn.Conv2d):
                fan_in = layer.weight[0].numel()
                # The smallest has 864 weights: a standard error of 2.4 %.
                assert layer.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.1)
                assert layer.bias is None or not layer.bias.any()


@pytest.mark.parametrize("name", ["nin", "squeezenet1_1"])
def test_the_rectified_maps_of_the_classes_start_open(name):
    """N(0, 0.01²) around one: with biases of zero, classes of the digits went negative everywhere and stayed so."""
    fc = archs.build(name, 300).head.fc
    assert fc.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert fc.bias.eq(1).all()


@pytest.mark.parametrize(
    ("name", "side", "pools", "fires"),
    [
        # Table 1 says 224 pixels, but its maps of 111, 55, 27 and 13 are those of 227.
        (
            "squeezenet1_0",
            227,
            [(96, 55), (256, 27), (512, 13)],
            [(128, 55), (128, 55), (256, 55), (256, 27), (384, 27), (384, 27), (512, 27), (512, 13)],
        ),
        # Version 1.1 pools after the stem, fire3 and fire5.
        (
            "squeezenet1_1",
            224,
            [(64, 55), (128, 27), (256, 13)],
            [(128, 55), (128, 55), (256, 27), (256, 27), (384, 13), (384, 13), (512, 13), (512, 13)],
        ),
    ],
)
def test_squeezenet_s_maps(name, side, pools, fires):
    model = on_meta(name, 1000)
    assert shapes_after(model, nn.MaxPool2d, side) == [(width, size, size) for width, size in pools]
    assert shapes_after(model, Fire, side) == [(width, size, size) for width, size in fires]


def test_squeezenet_s_fire_modules_have_the_parameters_of_table_1():
    """Table 1, before pruning: fire2 to fire9 and conv10."""
    model = on_meta("squeezenet1_0", 1000)
    fires = [parameters(module) for module in model.modules() if isinstance(module, Fire)]
    assert fires == [11_920, 12_432, 45_344, 49_440, 104_880, 111_024, 188_992, 197_184]
    assert parameters(model.head) == 513_000


def test_squeezenet_initialisation():
    """Uniform by fan-in, U(-√(6 / fan-in), √(6 / fan-in)), as torchvision draws."""
    expand = archs.build("squeezenet1_1", 10).stages[2].fire9.expand3x3
    assert expand.weight.abs().max().item() == pytest.approx((6 / 576) ** 0.5, rel=1e-3)
    assert expand.weight.std().item() == pytest.approx((2 / 576) ** 0.5, rel=0.02)
    assert not expand.bias.any()


def test_fire_keeps_two_maps():
    """What squeezes and what joins: the ReLU over the joined maps saves the two parts."""
    fire, images, kept = Fire(8, 2, 4), torch.randn(1, 8, 5, 5), {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        fire(images)
    held = {parameter.untyped_storage().data_ptr() for parameter in fire.parameters()}
    held.add(images.untyped_storage().data_ptr())
    assert sorted(tensor.shape[1] for pointer, tensor in kept.items() if pointer not in held) == [2, 8]


def test_darknet19_is_table_6():
    """Table 6 of YOLO9000, row by row, at 224 pixels."""
    expected = [(32, 224), (64, 112)]
    expected += [(128, 56), (64, 56), (128, 56), (256, 28), (128, 28), (256, 28)]
    expected += [(512, 14), (256, 14), (512, 14), (256, 14), (512, 14)]
    expected += [(1024, 7), (512, 7), (1024, 7), (512, 7), (1024, 7), (1000, 7)]
    model = on_meta("darknet19", 1000)
    assert shapes_after(model, nn.Conv2d) == [(width, side, side) for width, side in expected]
    sides = [layer.kernel_size[0] for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    assert sides == [3, 3, 3, 1, 3, 3, 1, 3, 3, 1, 3, 1, 3, 3, 1, 3, 1, 3, 1]


def test_darknet19_costs_what_the_paper_says():
    """Section 3: 5.58 billion operations an image, two a multiply-add."""
    assert 2 * multiply_adds(on_meta("darknet19", 1000), 224, 224) / 1e9 == pytest.approx(5.58, abs=0.005)


def test_darknet19_has_the_authors_slope():
    slopes = {layer.negative_slope for layer in on_meta("darknet19", 10).modules() if isinstance(layer, nn.LeakyReLU)}
    assert slopes == {0.1}


@pytest.mark.parametrize("grid", [6, 7])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (6, 7), (7, 6), (9, 20), (14, 15)])
def test_grid_pool_is_adaptive_average_pooling(grid, height, width):
    outputs, gradients = [], []
    images, direction = torch.randn(2, 3, height, width).double(), torch.randn(2, 3 * grid**2).double()
    for pool in (GridPool(grid), nn.Sequential(nn.AdaptiveAvgPool2d(grid), nn.Flatten())):
        seen = images.clone().requires_grad_()
        outputs.append(pool(seen))
        (outputs[-1] * direction).sum().backward()
        gradients.append(seen.grad)
    torch.testing.assert_close(*outputs, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-14)


def test_grid_pool_only_flattens_a_map_of_its_size():
    features = torch.randn(1, 2, 7, 7)
    assert GridPool(7)(features).data_ptr() == features.data_ptr()


def test_conv_head_is_a_linear_layer_on_the_mean_unless_rectified():
    head = ConvHead(6, 4, dropout=0.5).double().eval()
    features = torch.randn(2, 6, 3, 5).double()
    torch.testing.assert_close(head(features), F.linear(features.mean((2, 3)), head.fc.weight.flatten(1), head.fc.bias))
    rectified = ConvHead(6, 4, rectified=True).double()
    rectified.load_state_dict(head.state_dict())
    torch.testing.assert_close(rectified(features), head.fc(features).clamp(min=0).mean((2, 3)))


@pytest.mark.parametrize("head", [GridHead, ConvHead])
def test_heads_have_dropout_where_it_is_asked_for(head):
    sizes = (4, 2, 3) if head is GridHead else (4, 3)
    with torch.device("meta"):
        without, dropped = head(*sizes), head(*sizes, 0.3)
    rates = [[layer.p for layer in made if isinstance(layer, nn.Dropout)] for made in (without, dropped)]
    assert rates == [[], [0.3, 0.3] if head is GridHead else [0.3]]
    assert without.state_dict().keys() == dropped.state_dict().keys()


@pytest.mark.parametrize("name", ["vgg11_bn", "nin", "squeezenet1_0", "darknet19"])
def test_units_of_recompute_end_with_a_pooling(name):
    *pooled, last = on_meta(name, 10).blocks()
    assert [type(list(block.children())[-1]) for block in pooled] == [nn.MaxPool2d] * len(pooled)
    assert len(pooled) >= 3
    if name.startswith("vgg"):
        assert type(last[-1]) is nn.MaxPool2d
