"""Networks by name: what each is, what it is held to, and how to build it."""

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from torch import Tensor

from archs.classifier import Classifier, ImageSize, sides


class UnknownArch(ValueError):
    """No network has this name; the message says which names come nearest."""


@dataclass(frozen=True)
class Reference:
    """A library's model whose weights load into a network of ours."""

    source: str
    """As "library:model", such as "torchvision:resnet18" or "timm:darknet53"."""
    renames: tuple[tuple[str, str], ...]
    """(pattern, replacement) for `re.sub`, applied in turn to the library's keys to give ours."""
    convert: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] | None = None
    """Applied to the state dict before the renames, where tensors are shaped or split otherwise."""
    options: Mapping[str, object] = field(default_factory=dict, hash=False)
    """What `build` must be told for the library's published weights to mean what they mean there."""
    published: bool = True
    """The library publishes weights for it; else its random ones load, which tests compare."""


@dataclass(frozen=True)
class ArchInfo:
    """What is known of a network before it is built."""

    name: str
    """The name that `--arch` takes; aliases lead here."""
    paper: str
    """Title and arXiv number."""
    year: int
    """Of the paper's first version."""
    image_size: int
    """Side in pixels that the reference's figures are for."""
    parameters: int
    """Count with 1,000 classes, auxiliary heads included; a test holds the network to it."""
    multiply_adds: float
    """Of one image at image_size with 1,000 classes in evaluation: convolutions and matrix products."""
    references: tuple[Reference, ...] = ()
    """Models of libraries that have this structure; none where no library has this network."""
    aliases: tuple[str, ...] = ()
    """Other names for it."""
    minimum_size: int = 1
    """The smallest side in pixels at which every map keeps at least one pixel."""

    @property
    def peers(self) -> tuple[str, ...]:
        """The references by name, with published weights or without."""
        return tuple(reference.source for reference in self.references)

    @property
    def sources(self) -> tuple[str, ...]:
        """By name, the references whose weights are published."""
        return tuple(reference.source for reference in self.references if reference.published)


Constructor = Callable[..., Classifier]
C = TypeVar("C", bound=Constructor)

_INFOS: dict[str, ArchInfo] = {}
_CONSTRUCTORS: dict[str, Constructor] = {}
_ALIASES: dict[str, str] = {}
_ADOPTED: dict[str, tuple[ArchInfo, Constructor]] = {}

ADOPTERS: list[Callable[[str], tuple[ArchInfo, Constructor] | None]] = []
"""Who makes a network of a name that is not registered, such as timm:NAME (archs.foreign)."""


def register(
    name: str,
    *,
    paper: str,
    year: int,
    image_size: int,
    parameters: int,
    multiply_adds: float,
    references: tuple[Reference, ...] = (),
    aliases: tuple[str, ...] = (),
    minimum_size: int = 1,
) -> Callable[[C], C]:
    """Decorate a class or function that takes `num_classes` and keyword options and returns a `Classifier`.

    `in_channels` is an option of every network; `image_size` of those with one weight a place. The fields are
    those of `ArchInfo`. Raises ValueError where the name or an alias is taken.
    """
    info = ArchInfo(name, paper, year, image_size, parameters, multiply_adds, references, aliases, minimum_size)

    def add(made: C) -> C:
        for taken in (name, *aliases):
            if taken in _INFOS or taken in _ALIASES:
                raise ValueError(f"two networks are called {taken!r}")
        _INFOS[name] = info
        _CONSTRUCTORS[name] = made
        _ALIASES.update(dict.fromkeys(aliases, name))
        return made

    return add


def names() -> list[str]:
    """Every network's name, sorted, without aliases."""
    return sorted(_INFOS)


def lookup(name: str) -> ArchInfo:
    """What is known of the network called `name` (or of which that is an alias). Raises UnknownArch."""
    canonical = _ALIASES.get(name, name)
    if canonical not in _INFOS and (adopted := _adopted(name)):
        return adopted[0]
    if canonical not in _INFOS:
        near = difflib.get_close_matches(name.lower(), [*_INFOS, *_ALIASES], n=3, cutoff=0.5)
        hint = f"; nearest: {', '.join(near)}" if near else ""
        raise UnknownArch(f"no architecture is called {name!r}{hint} (there are {', '.join(names())})")
    return _INFOS[canonical]


def _adopted(name: str) -> tuple[ArchInfo, Constructor] | None:
    """A network that is not ours, once somebody knows how to make it. Raises UnknownArch as they do."""
    if name not in _ADOPTED:
        for adopt in ADOPTERS:
            if (made := adopt(name)) is not None:
                _ADOPTED[name] = made
    return _ADOPTED.get(name)


def constructor(name: str) -> Constructor:
    """The class or function that builds the network called `name`. Raises UnknownArch."""
    known = lookup(name).name
    return _CONSTRUCTORS[known] if known in _CONSTRUCTORS else _ADOPTED[known][1]


def options_of(name: str) -> list[str]:
    """The keyword options that `build` takes for the network called `name`. Raises UnknownArch."""
    return [option for option in inspect.signature(constructor(name)).parameters if option != "num_classes"]


def build(name: str, num_classes: int, *, image_size: ImageSize | None = None, **options: object) -> Classifier:
    """The network called `name`, initialised as its paper or its reference says, on torch's default device.

    image_size  side of the images that it will see in pixels, or (height, width); None is the one that its figures
                are for. Most networks take any size from their smallest on
    options     the keyword arguments of its constructor, in `archs/networks/<family>/<file>.py`, such as in_channels=1

    Raises UnknownArch; ValueError for fewer than one class or channel, or images that are too small; TypeError for
    an option that it does not take.
    """
    info = lookup(name)
    size = info.image_size if image_size is None else image_size
    height, width = sides(size)
    if num_classes < 1:
        raise ValueError(f"{info.name} needs at least one class, not {num_classes}")
    if min(height, width) < info.minimum_size:
        least = info.minimum_size
        raise ValueError(f"{info.name} needs images of at least {least}x{least} pixels, not {height}x{width}")
    accepted = options_of(name)
    for option in options:
        if option not in accepted:
            listed = ", ".join(accepted) or "none"
            raise TypeError(f"{info.name} takes no option {option!r}; it takes {listed}")
    channels = options.get("in_channels", 3)
    if not isinstance(channels, int) or channels < 1:
        raise ValueError(f"{info.name} needs at least one input channel, not {channels}")
    if "image_size" in accepted:
        options["image_size"] = size
    model = constructor(name)(num_classes, **options)
    model.arch, model.minimum_size = info.name, info.minimum_size
    if "image_size" in accepted and info.name in _INFOS:
        model.fixed_size = height, width
    return model
