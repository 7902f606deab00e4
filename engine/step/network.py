"""The network of a run: built from its description, with weights from elsewhere where they are asked for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import archs
from archs.fused import Fused, set_fused
from archs.weights import Loaded, reference_of
from engine.config import ConfigError, ModelConfig, RunConfig
from engine.step.plan import use_cuda

if TYPE_CHECKING:
    from torch import Tensor

LIBRARIES = ("timm:", "torchvision:")
WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model")
"""Keys under which training scripts keep the weights in a checkpoint."""

logger = logging.getLogger("hcr")


def network_options(model: ModelConfig) -> dict[str, Any]:
    """What `archs.build` is told beside the name: what was asked for, and what a library's weights expect.

    Raises ConfigError for an unknown network, or a library that has no weights for it.
    """
    options: dict[str, Any] = dict(model.options())
    if model.pretrained is not None and model.pretrained.startswith(LIBRARIES):
        try:
            options |= reference_of(model.arch, model.pretrained).options
        except ValueError as error:
            raise ConfigError(f"--pretrained: {error}") from None
    return options


def build_network(config: RunConfig, num_classes: int) -> archs.Classifier:
    """The network that `config` describes, with its pretrained weights where it names any.

    Raises ConfigError where it cannot be built so: name, image sizes, options, weights.
    """
    model, data = config.model, config.data
    options = network_options(model)
    try:
        network = archs.build(model.arch, num_classes, image_size=data.image_size, **options)
        if data.progressive_from:
            network.refuse_size(data.progressive_from, data.progressive_from)
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error)) from None
    if model.pretrained is not None:
        load_pretrained(network, model.pretrained)
    set_fused(network, model.fused, "cuda" if use_cuda() else "cpu")
    return network


def network_builder(config: RunConfig, num_classes: int) -> Callable[[], archs.Classifier]:
    """Builds the network that `config` describes without pretrained weights: for planning, which needs its shapes.

    Raises ConfigError for an unknown library's weights.
    """
    model = config.model
    build = partial(archs.build, model.arch, num_classes, image_size=config.data.image_size, **network_options(model))
    return partial(_fused, build, model.fused, "cuda" if use_cuda() else "cpu")


def _fused(build: Callable[[], archs.Classifier], fused: Fused, device: str) -> archs.Classifier:
    """A network with its layers as they will be trained: fused or not."""
    network = build()
    set_fused(network, fused, device)
    return network


def load_pretrained(network: archs.Classifier, pretrained: str) -> Loaded:
    """Load `timm:NAME`, `torchvision:NAME` or a file into `network`, and say what kept its initialisation.

    A library's weights are fetched by that library. Raises ConfigError, with the network unchanged, where they cannot
    be had or do not fit.
    """
    library = pretrained.startswith(LIBRARIES)
    weights = library_weights(pretrained) if library else file_weights(Path(pretrained))
    try:
        if library:
            loaded = archs.load_reference(network, weights, network.arch, pretrained)
        else:
            loaded = archs.load_weights(network, weights, network.arch)
    except ValueError as error:
        raise ConfigError(f"--pretrained {pretrained}: {error}") from None
    kept = f"; {', '.join(loaded.replaced)} start anew" if loaded.replaced else ""
    logger.info("weights of %s loaded (as %s)%s", pretrained, loaded.source, kept)
    return loaded


def library_weights(pretrained: str) -> Mapping[str, Tensor]:
    """The state dict that a library publishes under this name. Raises ConfigError where it cannot be had."""
    library, _, name = pretrained.partition(":")
    try:
        if library == "timm":
            import timm

            return timm.create_model(name, pretrained=True).state_dict()
        import torchvision

        return torchvision.models.get_model(name, weights="DEFAULT").state_dict()
    except ImportError:
        raise ConfigError(f"--pretrained {pretrained}: {library} is not installed: pip install {library}") from None
    except Exception as error:  # the libraries and their hubs raise many types: no network, no such name, no space
        raise ConfigError(f"--pretrained {pretrained}: {library} cannot give these weights: {error}") from error


def file_weights(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a .safetensors file or of a torch checkpoint, read without pickle's code.

    Raises ConfigError for a file that is not there, that holds more than tensors, or that holds none.
    """
    import torch

    if not path.is_file():
        raise ConfigError(f"--pretrained {path}: no such file (a library's: timm:NAME or torchvision:NAME)")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        read = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors, zip, pickle and the file system have no common type
        raise ConfigError(f"--pretrained {path} cannot be read as weights: {error}") from error
    for wrapper in WRAPPERS:
        if isinstance(read, dict) and isinstance(read.get(wrapper), dict):
            read = read[wrapper]
    tensors = {}
    if isinstance(read, dict):
        tensors = {key: value for key, value in read.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise ConfigError(f"--pretrained {path} holds no state dict")
    return {key.removeprefix("module."): tensor for key, tensor in tensors.items()}
