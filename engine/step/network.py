"""The network of a run: built from its description, with weights from elsewhere where they are asked for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import archs
from archs.fused import set_fused
from archs.registry import constructor
from archs.weights import reference_of
from engine.config import ConfigError, ModelConfig, RunConfig, require
from engine.data.preprocessing import Preprocessing
from engine.data.published import LIBRARIES
from engine.step.finetune import freeze, refuse_idle_rates
from engine.step.plan import use_cuda
from engine.step.weights.pretrained import load_pretrained

logger = logging.getLogger("hcr")

RGB_ONLY = "tensorflow_scaling"
"""Rescales coloured images within the network; for grey ones it is a part of the converted weights."""


def network_options(model: ModelConfig, channels: int = 3) -> dict[str, Any]:
    """What `archs.build` is told beside the name: what was asked for, and what a library's weights expect.

    Raises ConfigError for an unknown network, or a library that has no weights for it.
    """
    options: dict[str, Any] = dict(model.options()) | ({} if channels == 3 else {"in_channels": channels})
    if model.pretrained is not None and model.pretrained.startswith(LIBRARIES):
        try:
            reference = reference_of(model.arch, model.pretrained)
        except ValueError as error:
            raise ConfigError(f"--pretrained: {error}") from None
        require(
            reference.published,
            f"--pretrained {model.pretrained}: {model.pretrained.partition(':')[0]} publishes no weights of it; "
            f"{published_relatives(model.arch)}",
        )
        options |= {name: value for name, value in reference.options.items() if channels == 3 or name != RGB_ONLY}
    return options


def published_relatives(arch: str) -> str:
    """Which networks of the same file have published weights, in words."""
    file = constructor(arch).__module__
    found = [
        f"{source} for {name}"
        for name in archs.names()
        if constructor(name).__module__ == file
        for source in archs.lookup(name).sources
    ]
    return f"of its family there are {', '.join(found)}" if found else "nor does any library, of its family"


def build_network(
    config: RunConfig, num_classes: int, classes: Sequence[str] | None = None, begun: bool = False
) -> archs.Classifier:
    """The network that `config` describes, with its pretrained weights where it names any.

    classes  their names, in order, so that the head keeps what it knows of them
    begun    its weights will come from a checkpoint: those that the run began with are not read

    Raises ConfigError where it cannot be built so: name, image sizes, options, weights, rates of what is frozen.
    """
    model, data = config.model, config.data
    options = network_options(model, data.channels)
    try:
        network = archs.build(model.arch, num_classes, image_size=data.side, **options)
        if data.progressive_from:
            network.refuse_size(data.progressive_from, data.progressive_from)
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error)) from None
    if not begun:  # one that goes on is as it began
        refuse_idle_rates(network, model.finetune, config.optim)
    if model.pretrained is not None and not begun:
        load_pretrained(network, model.pretrained, classes, Preprocessing.named_by(data))
    elif model.finetune != "all" and not begun:
        logger.warning("--finetune %s without --pretrained: what is frozen stays as it was drawn", model.finetune)
    set_fused(network, model.fused, "cuda" if use_cuda() else "cpu", archs.lookup(model.arch).name)
    freeze(network, model.finetune)
    return network


def network_builder(config: RunConfig, num_classes: int) -> Callable[[], archs.Classifier]:
    """Builds the network that `config` describes without pretrained weights: for planning, which needs its shapes.

    Raises ConfigError for an unknown library's weights.
    """
    model = config.model
    options = network_options(model, config.data.channels)
    build = partial(archs.build, model.arch, num_classes, image_size=config.data.side, **options)
    return partial(_as_trained, build, model, "cuda" if use_cuda() else "cpu")


def _as_trained(build: Callable[[], archs.Classifier], model: ModelConfig, device: str) -> archs.Classifier:
    """A network with its layers as they will be trained: fused or not, frozen or not."""
    network = build()
    set_fused(network, model.fused, device, archs.lookup(model.arch).name)
    freeze(network, model.finetune)
    return network
