"""Networks that are not ours: `timm:NAME`, `torchvision:NAME`, and `FILE.py:FACTORY` of a person's own.

They train like ours. The units of recompute are found: the longest chain of containers in which each takes what the one
before it has made, seen in a forward pass on the meta device. What lies around that chain is never recomputed.
"""

from __future__ import annotations

import copy
import difflib
import inspect
import re
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from archs.classifier import ImageSize, sides
from archs.own_file import OWN, RULE, in_its_file, own_factory, refuse_unfinished
from archs.registry import ADOPTERS, ArchInfo, Reference, UnknownArch

LIBRARIES = ("timm", "torchvision")
HEADS = ("fc", "classifier", "heads", "head")
"""What libraries call the part that makes the logits, where the network cannot be asked."""


class Foreign(nn.Module):
    """A network around another library's: images [N, C, H, W] -> logits [N, classes]; its keys begin with `network.`.

    name        as it was asked for
    num_classes, image_size and channels are what it was built for

    Raises ValueError for a network without a classifier, one that makes no logits [N, num_classes], and one that cannot
    run where there is nothing else to run it on.
    """

    minimum_size = 1
    fixed_size: tuple[int, int] | None = None

    def __init__(
        self, network: nn.Module, name: str, num_classes: int, image_size: ImageSize, channels: int = 3
    ) -> None:
        super().__init__()
        self.network, self.arch = network, name
        try:
            self.head_name = head_name(network)
        except Exception as error:  # get_classifier may raise anything
            raise ValueError(f"{name}: {error}{_rule(name)}") from error
        shape = (2, channels, *sides(image_size))
        try:
            self.unit_names, output = unit_names(network, self.head_name, shape)
        except Exception:  # a network may raise anything, and for the meta device alone
            self.unit_names, output = (), _seen_on_a_cpu(network, name, shape)
        _refuse_other_outputs(output, name, num_classes)

    @property
    def classifier_pattern(self) -> str:
        """Which keys of the state dict have a row a class."""
        return rf"network\.{re.escape(self.head_name)}\.(.*\.)?(weight|bias)$"

    @property
    def logits_pattern(self) -> str:
        """Which key of the state dict has a row a class for certain: the last weights of the head."""
        weighted = [key for key in self.head.state_dict() if key.endswith("weight")]
        return re.escape(f"network.{self.head_name}.{weighted[-1]}") + "$" if weighted else self.classifier_pattern

    @property
    def head(self) -> nn.Module:
        """The part that makes the logits."""
        return self.network.get_submodule(self.head_name)

    def blocks(self) -> Iterator[nn.Module]:
        """The units of recompute that were found, in execution order."""
        for name in self.unit_names:
            yield self.network.get_submodule(name)

    def forward(self, images: Tensor) -> Tensor:
        output = self.network(images)
        return output if isinstance(output, Tensor) else output[0]  # torchvision's have auxiliary logits behind

    def refuse_size(self, height: int, width: int) -> None:
        """Sizes are the network's own affair."""


def head_name(network: nn.Module) -> str:
    """Dotted name of the module that makes the logits. Raises ValueError where there is none with weights."""
    asked = getattr(network, "get_classifier", None)
    if callable(asked):
        wanted = asked()
        for name, module in network.named_modules():
            if module is wanted and name:
                return name
    for name in HEADS:
        module = getattr(network, name, None)
        if isinstance(module, nn.Module) and any(True for _ in module.parameters()):
            return name
    weighted = [name for name, module in network.named_modules() if name and isinstance(module, nn.Linear)]
    if not weighted:
        raise ValueError(
            f"{type(network).__name__} has no torch.nn.Linear, and no part called {', '.join(HEADS)}, that could be "
            "its classifier"
        )
    return weighted[-1]


def candidates(network: nn.Module, head: str) -> list[str]:
    """Modules that may be units: what the containers hold, and containers whose children are all single layers."""

    def expand(module: nn.Module, name: str) -> list[str]:
        children = [(f"{name}.{part}".lstrip("."), child) for part, child in module.named_children()]
        if not isinstance(module, nn.Sequential | nn.ModuleList) and name:
            return [name] if children else []
        parts = [(part, child) for part, child in children if not f"{head}.".startswith(f"{part}.")]
        inside = [found for part, child in parts for found in expand(child, part)]
        return inside or ([name] if children and name else [])

    found = expand(network, "")
    first, within, rest = head.partition(".")
    if found or not within:
        return found
    return [f"{first}.{name}" for name in candidates(network.get_submodule(first), rest)]  # all lies in one module


def unit_names(network: nn.Module, head: str, shape: tuple[int, ...]) -> tuple[tuple[str, ...], object]:
    """(the longest chain among `candidates`, by parameters; what the network makes of images of that shape).

    Raises whatever the network does where it does not run on meta tensors.
    """
    names = candidates(network, head)
    calls: list[tuple[str, int, int]] = []
    alive: list[Tensor] = []  # ids are of tensors that live

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple, output: object) -> None:
            if len(inputs) == 1 and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
                alive.extend((inputs[0], output))
                calls.append((name, id(inputs[0]), id(output)))

        return hook

    shadow = copy.deepcopy(network).to("meta").eval()
    for name in names:
        shadow.get_submodule(name).register_forward_hook(note(name))
    with torch.no_grad():
        logits = shadow(torch.empty(shape, device="meta"))
    seen = [name for name, _, _ in calls]
    chains: list[list[str]] = []
    made = None
    for name, taken, output in calls:
        if seen.count(name) > 1:  # used twice: it is no unit
            made = None
            continue
        if made is None or taken != made:
            chains.append([])
        chains[-1].append(name)
        made = output
    sizes = {name: sum(one.numel() for one in network.get_submodule(name).parameters()) for name in names}
    best = max(chains, key=lambda chain: sum(sizes[name] for name in chain), default=[])
    filled = [place for place, name in enumerate(best) if sizes[name]]
    return tuple(best[filled[0] : filled[-1] + 1]) if filled else (), logits


def _seen_on_a_cpu(network: nn.Module, name: str, shape: tuple[int, ...]) -> object:
    """What a network makes of black images of that shape; None where only a GPU, or nobody, can say.

    Raises ValueError, with the line, for one that cannot run on the CPU where that is all there is.
    """
    if torch.cuda.is_available() or any(tensor.is_meta for tensor in network.state_dict().values()):
        return None
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            return copy.deepcopy(network).eval()(torch.zeros(shape))
    except MemoryError:
        raise
    except Exception as error:  # a network may raise anything
        told = in_its_file(error, name.rpartition(":")[0] if OWN.search(name) else None)
        raise ValueError(f"{name} cannot run on images {list(shape)}: {told}") from error


def _rule(name: str) -> str:
    """What a network of one's own has to be, to end a sentence with; empty for a library's."""
    return f"; {RULE}" if OWN.search(name) else ""


def _refuse_other_outputs(output: object, name: str, num_classes: int) -> None:
    rule = _rule(name)
    if isinstance(output, tuple | list) and output:
        output = output[0]
    if output is None:  # nobody could say
        return
    if not isinstance(output, Tensor):
        raise ValueError(f"{name} makes a {type(output).__name__} of images, not logits{rule}")
    if tuple(output.shape) != (2, num_classes):
        raise ValueError(f"{name} makes {[*output.shape]} of 2 images, not logits [2, {num_classes}]{rule}")


def adopt(name: str) -> tuple[ArchInfo, Callable[..., nn.Module]] | None:
    """What is known of a foreign network and how it is built; None for a name of another form.

    Raises UnknownArch for a library without it, and as `own_factory` and `refuse_unfinished`.
    """
    library, _, model = name.partition(":")
    if library in LIBRARIES and model:
        make, size = _of_library(library, model)
        references: tuple[Reference, ...] = (Reference(name, ((r"^", "network."),)),)
    elif OWN.search(name):
        make, size, references = own_factory(name), 224, ()
    else:
        refuse_unfinished(name)
        return None

    def build(num_classes: int, *, in_channels: int = 3, image_size: ImageSize = size) -> Foreign:
        network = make(num_classes, image_size, in_channels)
        return Foreign(network, name, num_classes, image_size, in_channels)

    return ArchInfo(name, name, 0, size, 0, 0, references), build


def timm_size(model: str, image_size: ImageSize) -> dict[str, ImageSize]:
    """What timm is told of the size, beside the name: nothing for a network that takes any."""
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(model)
    return {"img_size": image_size} if config and config.fixed_input_size else {}


def _of_library(library: str, model: str) -> tuple[Callable[[int, ImageSize, int], nn.Module], int]:
    if library == "timm":
        try:
            import timm
        except ImportError:
            raise UnknownArch(f"timm:{model}: timm is not installed: pip install timm") from None
        if not timm.is_model(model.partition(".")[0]):
            raise UnknownArch(f"timm has no model called {model!r}{_near(model, timm.list_models())}")
        config = timm.get_pretrained_cfg(model)
        side = config.input_size[-1] if config else 224

        def make(num_classes: int, image_size: ImageSize, in_channels: int) -> nn.Module:
            size = timm_size(model, image_size)
            return timm.create_model(model, pretrained=False, num_classes=num_classes, in_chans=in_channels, **size)

        return make, side
    from torchvision import models

    if model not in models.list_models(module=models):
        raise UnknownArch(
            f"torchvision has no classifier called {model!r}{_near(model, models.list_models(module=models))}"
        )

    def make_theirs(num_classes: int, image_size: ImageSize, in_channels: int) -> nn.Module:
        if in_channels != 3:
            raise ValueError(f"torchvision:{model} is for coloured images; ours and timm's take grey")
        taken = inspect.signature(models.get_model_builder(model)).parameters
        sized = model.startswith("vit")
        size = {"image_size": image_size} if sized and "kwargs" in taken else {}
        return models.get_model(model, weights=None, num_classes=num_classes, **size)

    return make_theirs, 224


def _near(model: str, names: Sequence[str]) -> str:
    """The names that go on from it and those that come nearest, in brackets; nothing where none does."""
    longer = [name for name in names if name.startswith(model.lower())]
    near = list(dict.fromkeys([*longer, *difflib.get_close_matches(model.lower(), names, n=5)]))[:5]
    return f" (near: {', '.join(near)})" if near else ""


ADOPTERS.append(adopt)
