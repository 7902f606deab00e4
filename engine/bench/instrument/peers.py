"""Other people's networks, by the names that the registry gives: "torchvision:resnet18", "timm:darknet53"."""

from __future__ import annotations

import importlib
from typing import Any

from torch import nn

SIZED = ("vit", "mixer", "resmlp", "gmlp")
"""Beginnings of the names of networks that hold one weight a place, and so are built for one image size."""


class NotAvailable(Exception):
    """Something that a row needs is not on this machine; the message says what."""


def need(module: str) -> Any:
    """The module, or NotAvailable where it is not installed or does not load."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = getattr(error, "name", None) or module
        own = missing.startswith("engine.")
        raise NotAvailable(
            f"{missing if own else missing.partition('.')[0]} is not {'there' if own else 'installed'}"
        ) from None


def build_peer(source: str, num_classes: int, image_size: int, auxiliary: bool = True) -> nn.Module:
    """The library's own network with random weights, in training mode, for images of `image_size` px.

    Raises NotAvailable where the library is not installed.
    """
    library, _, name = source.partition(":")
    if library == "torchvision":
        return _torchvision(name, num_classes, image_size, auxiliary)
    return _timm(name, num_classes, image_size)


def _torchvision(name: str, num_classes: int, image_size: int, auxiliary: bool) -> nn.Module:
    models = need("torchvision.models")
    options: dict[str, Any] = {"image_size": image_size} if name.startswith(SIZED) else {}
    if name in ("googlenet", "inception_v3"):  # their own draw of the weights takes seconds
        options = {"aux_logits": auxiliary, "init_weights": False, "transform_input": False}
    return models.get_model(name, weights=None, num_classes=num_classes, **options)


def _timm(name: str, num_classes: int, image_size: int) -> nn.Module:
    options = {"img_size": image_size} if name.startswith(SIZED) else {}
    return need("timm").create_model(name, pretrained=False, num_classes=num_classes, **options)


def without_dropout(model: nn.Module) -> nn.Module:
    """The same model with every dropout and every dropped branch at rate 0; the libraries' defaults differ."""
    for module in model.modules():
        for rate in ("p", "drop_prob", "rate"):
            if isinstance(getattr(module, rate, None), float):
                setattr(module, rate, 0.0)
    return model
