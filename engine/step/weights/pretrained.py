"""Weights from elsewhere into a run's network, with the pixels and the classes that they are for."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import archs
from archs.channels import Normalised
from archs.weights import Loaded, reference_of
from engine.config import ConfigError, RunConfig
from engine.data.preprocessing import Preprocessing
from engine.data.published import LIBRARIES, published_classes, published_preprocessing
from engine.data.sixteen_bits import bits_of
from engine.data.sources.source import Source
from engine.step.weights.files import file_metadata, named_classes, present, read_weight_file

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SHOWN = 8
"""Classes named of each kind; the rest are counted."""

logger = logging.getLogger("hcr")


def weights_preprocessing(pretrained: str) -> Preprocessing | None:
    """The pixels that `timm:NAME`, `torchvision:NAME` or a file expect; None for a file that does not say.

    Raises ConfigError for a library without these weights, and for what a file says that cannot be meant.
    """
    if pretrained.startswith(LIBRARIES):
        return published_preprocessing(pretrained)
    said = file_metadata(Path(pretrained)).get("preprocessing")
    return None if said is None else Preprocessing.from_json(said, f"--pretrained {pretrained}")


def with_preprocessing(config: RunConfig, source: Source) -> RunConfig:
    """The same run with every part of its preprocessing named: flags, else the pretrained weights', else the source's.

    Raises ConfigError as `weights_preprocessing`, and for a file of weights that is not there.
    """
    if Preprocessing.named_by(config.data) is not None:
        return config if config.resume is not None else with_bits(config, source)
    pretrained, expected = config.model.pretrained, None
    if pretrained is not None:
        if not pretrained.startswith(LIBRARIES):
            present(Path(pretrained), f"--pretrained {pretrained}")
        expected = weights_preprocessing(pretrained)
    config = with_bits(config, source)
    chosen = Preprocessing.of(source, config.data, expected)
    return replace(config, data=chosen.into(config.data))


def with_bits(config: RunConfig, source: Source) -> RunConfig:
    """The same run with its bits a colour said: those of the training images, as far as they can be kept."""
    if config.data.bits:
        return config
    bits = bits_of(source.train)
    kept = "off" if config.data.cache == "auto" else config.data.cache
    why = "the augmentation" if config.augment.chooses_operators else f"--data.cache {kept}" if kept != "off" else ""
    if bits == 16:
        logger.info(
            "images of 16 bits a colour: %s",
            f"read as 8, which is what {why} works on" if why else "all of them are kept (--data.bits 8 is faster)",
        )
    return replace(config, data=replace(config.data, bits=8 if why else bits))


def weights_classes(pretrained: str) -> list[str] | None:
    """The classes that the weights know, in order; None where nobody says. Raises ConfigError as `class_names`."""
    if pretrained.startswith(LIBRARIES):
        return published_classes(pretrained)
    return named_classes(file_metadata(Path(pretrained)), f"--pretrained {pretrained}")


def load_pretrained(
    network: archs.Classifier,
    pretrained: str,
    classes: Sequence[str] | None = None,
    expected: Preprocessing | None = None,
) -> Loaded:
    """Load `timm:NAME`, `torchvision:NAME` or a file into `network`, and say what kept its initialisation.

    classes  the network's, in order: rows of the head whose class has the same name in the weights are kept, the
             others start anew. None, or weights that name no classes: a head for as many classes is kept as it is
    expected  the network's preprocessing, by which a stem for grey images becomes one for coloured ones or the reverse

    A library's weights are fetched by that library. Raises ConfigError, with the network unchanged, where they cannot
    be had or do not fit.
    """
    library = pretrained.startswith(LIBRARIES)
    weights = (
        library_weights(pretrained) if library else read_weight_file(Path(pretrained), f"--pretrained {pretrained}")
    )
    theirs = weights_classes(pretrained)
    rows = None
    if classes is not None and theirs is not None:
        rows = {place: theirs.index(name) for place, name in enumerate(classes) if name in theirs}
    said = promised = weights_preprocessing(pretrained)
    if library and network.arch in archs.names() and _rescales(network.arch, pretrained):
        said = said and replace(said, mean=(0.5,) * 3, std=(0.5,) * 3)
    normalised = tuple(one and Normalised(one.mean, one.std) for one in (said, expected))
    try:
        if library:
            loaded = archs.load_reference(network, weights, network.arch, pretrained, rows, normalised)
        else:
            count = None if theirs is None else len(theirs)
            loaded = archs.load_weights(network, weights, network.arch, rows, normalised, count)
    except ValueError as error:
        arch = network.arch if library else file_metadata(Path(pretrained)).get("arch", network.arch)
        other = "" if arch == network.arch else f"; the file says that it is of {arch}"
        raise ConfigError(f"--pretrained {pretrained}: {error}{other}") from None
    logger.info("weights of %s loaded (as %s)%s", pretrained, loaded.source, _kept(loaded, classes, rows))
    if loaded.converted:
        logger.info("%s", loaded.converted)
    if expected is not None:
        logger.info("%s %s", pretrained, _pixels(promised, expected))
    return loaded


def _pixels(promised: Preprocessing | None, used: Preprocessing) -> str:
    """Which pixels weights are for, and which they get, in words."""
    if promised is None:
        return f"does not say which pixels it expects; assumed: {used.describe()}"
    here = "so has this run" if promised == used else f"this run has {used.describe()}"
    return f"expects {promised.describe()}; {here}"


def _rescales(arch: str, pretrained: str) -> bool:
    """Whether the library's network rescales coloured images itself, to a mean and a deviation of a half."""
    return "tensorflow_scaling" in reference_of(arch, pretrained).options


def _kept(loaded: Loaded, classes: Sequence[str] | None, rows: Mapping[int, int] | None) -> str:
    """What became of the head, in words."""
    anew = f"; {', '.join(loaded.replaced)} start anew" if loaded.replaced else ""
    if classes is None or rows is None:
        unnamed = "" if loaded.replaced or classes is None else "; they name no classes, so the head is kept as it is"
        return anew + unnamed
    if not rows:
        return f"{anew}: none of the {len(classes)} classes is among theirs"
    kept = [classes[place] for place in rows]
    new = [name for place, name in enumerate(classes) if place not in rows]
    if not new:
        return f"{anew}; the head knows all {len(classes)} classes"
    return f"{anew}; the head knows {_named(kept)} by name, {_named(new)} start anew"


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def library_weights(pretrained: str) -> Mapping[str, Tensor]:
    """The state dict that a library publishes under this name. Raises ConfigError where it cannot be had."""
    return library_network(pretrained, "--pretrained").state_dict()


def library_network(name: str, flag: str, trained: bool = True) -> torch.nn.Module:
    """A library's own network, with its weights if `trained`, as `timm:NAME`.

    Raises ConfigError, which begins with `flag`, where it cannot be had.
    """
    library, _, network = name.partition(":")
    try:
        if library == "timm":
            import timm

            return timm.create_model(network, pretrained=trained)
        import torchvision

        return torchvision.models.get_model(network, weights="DEFAULT" if trained else None)
    except ImportError:
        raise ConfigError(f"{flag} {name}: {library} is not installed: pip install {library}") from None
    except Exception as error:  # the libraries and their hubs raise many types: no network, no such name, no space
        raise ConfigError(f"{flag} {name}: {library} cannot give these weights: {error}") from error
