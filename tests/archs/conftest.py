"""What the tests of the networks share: sizes that stay cheap, references, and weights that show a mistake."""

import pytest
import torch
import torchvision
from torch import Tensor, nn

import archs
from archs import registry

# Where 32 pixels will not do: the least that leaves every grid a pixel or more, or four patches.
SIDES = {
    **{"inceptionv3": 75, "inceptionv3_fullres": 13},
    **{"alexnet": 63, "alexnet_owt": 63, "nin": 39},
    **{"vit_b32": 64, "vit_d6": 64},
}


def cheap_side(name: str) -> int:
    """The smallest cheap image side that the network of that name takes, in pixels."""
    return SIDES.get(name, 32)


def peer(source: str, num_classes: int, image_size: int) -> nn.Module:
    """The library's own model, with its random weights, without dropout."""
    library, _, model = source.partition(":")
    sized = model.startswith(("vit", "mixer", "resmlp", "gmlp"))
    if library == "timm":
        timm = pytest.importorskip("timm", reason=f"timm is not installed: {source} cannot be compared")
        size = {"img_size": image_size} if sized else {}
        made = timm.create_model(model, pretrained=False, num_classes=num_classes, **size)
    else:
        size = {"image_size": image_size} if sized else {}
        # Its own draw takes seconds.
        drawn = {"init_weights": False} if model in ("inception_v3", "googlenet") else {}
        made = torchvision.models.get_model(model, num_classes=num_classes, **size, **drawn)
    return without_dropout(made)


def without_dropout(model: nn.Module) -> nn.Module:
    """The same model, with every dropout and every dropped path at rate zero."""
    for module in model.modules():
        for rate in ("p", "drop_prob", "rate"):
            if isinstance(getattr(module, rate, None), float):
                setattr(module, rate, 0.0)
    return model


def randomised(model: nn.Module) -> nn.Module:
    """Give every layer values that a mistake in it would show in; returns the model.

    BatchNorm away from its start, and weights scaled so that the image still counts in the last layer: torch's
    default draw loses it on the way, and the logits are then the biases' alone. Everything else (biases, norms,
    positions, layer scales) gets noise.
    """
    weights = set()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            weights |= {module.weight, module.bias}
        elif isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            weights.add(module.weight)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter not in weights:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def small_images():
    """images(name, batch=4): the smallest cheap images that the network of that name takes, [N, 3, side, side]."""

    def images(name: str, batch: int = 4, dtype: torch.dtype = torch.float32) -> Tensor:
        side = cheap_side(name)
        return torch.randn(batch, 3, side, side, dtype=dtype)

    return images


@pytest.fixture
def randomise():
    """See `randomised`."""
    return randomised


@pytest.fixture
def loaded():
    """loaded(name, source, side): (ours, theirs) in float64, the same random weights and statistics, no dropout."""

    def pair(name: str, source: str, side: int, **options) -> tuple[nn.Module, nn.Module]:
        theirs = randomised(peer(source, 10, side)).double()
        ours = without_dropout(archs.build(name, 10, image_size=side, **options)).double()
        archs.load_reference(ours, theirs.state_dict(), name, source)
        return ours, theirs

    return pair


def cheapest_of_each_file() -> set[str]:
    """One network a file of archs/, the one with the fewest multiply-adds: what the default tests run in full."""
    cheapest: dict[str, archs.ArchInfo] = {}
    for info in map(archs.lookup, archs.names()):
        file = registry.constructor(info.name).__module__
        if file not in cheapest or info.multiply_adds < cheapest[file].multiply_adds:
            cheapest[file] = info
    return {info.name for info in cheapest.values()}


SAMPLE = cheapest_of_each_file()


OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in archs.names() if name not in SAMPLE]


@pytest.fixture(params=[*sorted(SAMPLE), *OTHERS])
def name(request) -> str:
    """Every registered network: one a file in the default run, all with `-m "slow or not slow"`."""
    return request.param


PAIRS = [(name, source) for name in archs.names() for source in archs.lookup(name).peers]


@pytest.fixture(
    params=[
        pytest.param(pair, id="-".join(pair), marks=() if pair[0] in SAMPLE else pytest.mark.slow) for pair in PAIRS
    ]
)
def pair(request) -> tuple[str, str]:
    """(name, source) for every library's model whose weights load; one network a file in the default run."""
    return request.param


@pytest.fixture(params=archs.names())
def every_name(request) -> str:
    """Every registered network in every run: for what is cheap on the meta device."""
    return request.param
