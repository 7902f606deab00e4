"""Other people's networks by the name that the registry gives as a reference: "torchvision:resnet18", "timm:darknet53"."""

from __future__ import annotations

import importlib
from typing import Any

from torch import nn

import archs


class NotAvailable(Exception):
    """Something that a row needs is not on this machine; the message says what."""


def need(module: str) -> Any:
    """The module, or NotAvailable where it is not installed or does not load."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = getattr(error, "name", None) or module
        raise NotAvailable(f"{missing.partition('.')[0]} is not installed") from None


def sources(arch: str) -> list[str]:
    """The references of a network, as "library:model", those that the registry names first in front."""
    info: Any = archs.lookup(arch)
    if hasattr(info, "references"):
        return [reference.source for reference in info.references]
    return [info.reference] if info.reference else []


def build_peer(source: str, num_classes: int, image_size: int) -> nn.Module:
    """The library's own network with random weights, in training mode, for images of `image_size` px.

    Raises NotAvailable where the library is not installed.
    """
    library, _, name = source.partition(":")
    return _torchvision(name, num_classes, image_size) if library == "torchvision" else _timm(name, num_classes, image_size)


def _torchvision(name: str, num_classes: int, image_size: int) -> nn.Module:
    models = need("torchvision.models")
    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):  # scipy's or torch's slow truncated normals would only be overwritten
        options = {"aux_logits": True, "init_weights": False, "transform_input": False}
    elif name.startswith("vit_"):
        options = {"image_size": image_size}
    return models.get_model(name, weights=None, num_classes=num_classes, **options)


def _timm(name: str, num_classes: int, image_size: int) -> nn.Module:
    timm = need("timm")
    try:
        return timm.create_model(name, pretrained=False, num_classes=num_classes, img_size=image_size)
    except TypeError:  # convolutional networks take any size and do not know the argument
        return timm.create_model(name, pretrained=False, num_classes=num_classes)
