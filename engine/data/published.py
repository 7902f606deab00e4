"""The preprocessing that a library's published weights expect, as the library itself says; nothing is downloaded."""

from __future__ import annotations

import difflib
from typing import Any

from engine.config import ConfigError
from engine.config.pixels.image_size import size_of
from engine.data.preprocessing import Preprocessing

LIBRARIES = ("timm:", "torchvision:")


def published_preprocessing(name: str) -> Preprocessing:
    """What the weights called `timm:NAME` or `torchvision:NAME` expect.

    timm         timm.get_pretrained_cfg: input size, crop_pct, mean, std, interpolation of its evaluation
    torchvision  the transforms of the model's default weights: the crop share is crop size over resize size

    Raises ConfigError where the library is not installed, knows no such weights, or prepares images in a way that
    the loaders do not have.
    """
    library, _, model = name.partition(":")
    try:
        return _of_timm(model) if library == "timm" else _of_torchvision(model)
    except ImportError:
        raise ConfigError(f"{name}: {library} is not installed: pip install {library}") from None


def published_classes(name: str) -> list[str] | None:
    """The classes of the weights called `timm:NAME` or `torchvision:NAME`, in order, where they are ImageNet's.

    Names are torchvision's (its weights' categories). None for weights of other classes, which nobody names.
    """
    from torchvision import models

    library, _, model = name.partition(":")
    if library == "torchvision":
        return list(models.get_model_weights(model).DEFAULT.meta.get("categories", [])) or None
    import timm

    config = timm.get_pretrained_cfg(model)
    if config is None or config.num_classes != 1000 or getattr(config, "label_offset", None):
        return None
    return list(models.ResNet50_Weights.DEFAULT.meta["categories"])


def _of_timm(model: str) -> Preprocessing:
    import timm

    try:
        config = timm.get_pretrained_cfg(model)
    except RuntimeError as error:  # a tag that this model does not have
        raise ConfigError(f"timm:{model}: {error}") from None
    if config is None:
        raise ConfigError(f"timm:{model}: timm knows no model of that name")
    if not config.has_weights:
        there = {name.partition(".")[0] for name in timm.list_models(pretrained=True)}
        near = ", ".join(difflib.get_close_matches(model, sorted(there), n=5))
        raise ConfigError(f"timm:{model}: timm publishes no weights of it{f' (it does of {near})' if near else ''}")
    if config.crop_mode not in (None, "center"):
        raise ConfigError(f"timm:{model}: its images are prepared by {config.crop_mode!r}, which no loader here does")
    channels, height, width = config.input_size
    return _checked(
        f"timm:{model}",
        mean=tuple(config.mean),
        std=tuple(config.std),
        eval_crop=config.crop_pct,
        interpolation=config.interpolation,
        image_size=size_of(height, width),
        channels=channels,
    )


def _of_torchvision(model: str) -> Preprocessing:
    from torchvision import models

    try:
        weights = models.get_model_weights(model).DEFAULT
    except (ValueError, AttributeError):
        raise ConfigError(f"torchvision:{model}: torchvision has no weights of that name") from None
    transforms: Any = weights.transforms()
    if not hasattr(transforms, "crop_size"):
        raise ConfigError(f"torchvision:{model}: these are not the weights of an image classifier")
    (crop,), (resize,) = transforms.crop_size, transforms.resize_size
    return _checked(
        f"torchvision:{model}",
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        eval_crop=crop / resize,
        interpolation=transforms.interpolation.value,
        image_size=crop,
    )


def _checked(name: str, **fields: Any) -> Preprocessing:
    try:
        return Preprocessing(**fields)
    except ConfigError as error:
        raise ConfigError(f"{name} cannot be fed: {error}") from None
