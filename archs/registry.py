"""Networks by name: what each is, what it is held to, and how to build it."""

import difflib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from archs.classifier import Classifier


class UnknownArch(ValueError):
    """No network has this name; the message says which names come nearest."""


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
    """Of one image at image_size with 1,000 classes in evaluation: convolutions and linear layers."""
    reference: str | None
    """Whose weights load, as "library:model"; None where no library has this network."""
    aliases: tuple[str, ...] = ()
    """Other names for it."""
    minimum_size: int = 1
    """The smallest side in pixels at which every map keeps at least one pixel."""
    renames: tuple[tuple[str, str], ...] = ()
    """(pattern, replacement) for `re.sub`, applied in turn to the reference's keys to give ours."""


Constructor = Callable[..., Classifier]
C = TypeVar("C", bound=Constructor)

_INFOS: dict[str, ArchInfo] = {}
_CONSTRUCTORS: dict[str, Constructor] = {}
_ALIASES: dict[str, str] = {}


def register(
    name: str,
    *,
    paper: str,
    year: int,
    image_size: int,
    parameters: int,
    multiply_adds: float,
    reference: str | None = None,
    aliases: tuple[str, ...] = (),
    minimum_size: int = 1,
    renames: tuple[tuple[str, str], ...] = (),
) -> Callable[[C], C]:
    """Decorate a class or function that takes `num_classes` and keyword options and returns a `Classifier`.

    The fields are those of `ArchInfo`. Raises ValueError where the name or an alias is taken.
    """
    info = ArchInfo(name, paper, year, image_size, parameters, multiply_adds, reference, aliases, minimum_size, renames)

    def add(constructor: C) -> C:
        for taken in (name, *aliases):
            if taken in _INFOS or taken in _ALIASES:
                raise ValueError(f"two networks are called {taken!r}")
        _INFOS[name] = info
        _CONSTRUCTORS[name] = constructor
        _ALIASES.update(dict.fromkeys(aliases, name))
        return constructor

    return add


def names() -> list[str]:
    """Every network's name, sorted, without aliases."""
    return sorted(_INFOS)


def lookup(name: str) -> ArchInfo:
    """What is known of the network called `name` (or of which that is an alias). Raises UnknownArch."""
    canonical = _ALIASES.get(name, name)
    if canonical not in _INFOS:
        near = difflib.get_close_matches(name.lower(), [*_INFOS, *_ALIASES], n=3, cutoff=0.5)
        hint = f"; nearest: {', '.join(near)}" if near else ""
        raise UnknownArch(f"no architecture is called {name!r}{hint} (there are {', '.join(names())})")
    return _INFOS[canonical]


def by_reference(reference: str) -> ArchInfo:
    """The network whose weights come from `reference`. Raises ValueError that lists the references there are."""
    known = {info.reference: info for info in _INFOS.values() if info.reference}
    if reference not in known:
        raise ValueError(f"no weights are known by the name {reference!r} (there are {', '.join(sorted(known))})")
    return known[reference]


def build(name: str, num_classes: int, **options: object) -> Classifier:
    """The network called `name`, initialised as its reference initialises it, on torch's default device.

    options  the keyword arguments of its constructor, in `archs/<file>.py`

    Raises UnknownArch; ValueError for fewer than one class; TypeError for an option that it does not take.
    """
    info = lookup(name)
    if num_classes < 1:
        raise ValueError(f"{info.name} needs at least one class, not {num_classes}")
    constructor = _CONSTRUCTORS[info.name]
    accepted = [option for option in inspect.signature(constructor).parameters if option != "num_classes"]
    for option in options:
        if option not in accepted:
            raise TypeError(f"{info.name} takes no option {option!r}; it takes {', '.join(accepted) or 'none'}")
    return constructor(num_classes, **options)
