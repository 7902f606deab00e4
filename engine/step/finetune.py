"""Which part of a network is trained, and how fast each part of it.

A frozen part is a fixed function: no gradients, its BatchNorm normalises with the statistics that came with the weights
and leaves them alone, its dropout is off. Below the first trained block nothing is kept for the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from torch import nn

from engine.config import ConfigError, OptimConfig, require

FROZEN = "_hcr_frozen"
"""Marks a module that stays in evaluation mode."""


def freeze(model: Any, finetune: str) -> None:
    """Freeze what `--finetune` leaves out, in place: "all" trains everything, "head" the head, N the last N blocks too.

    model  a network with `blocks()` and `head` (archs.Classifier); auxiliary heads are trained with the head

    Raises ConfigError for as many blocks as there are, or more.
    """
    if finetune == "all":
        return
    trained = trained_parts(model, finetune)
    kept = {id(parameter) for module in trained for parameter in module.parameters()}
    inside = {id(module) for part in trained for module in part.modules()}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in kept)
    around = [module for module in model.modules() if any(id(child) in inside for child in module.modules())]
    open_modules = inside | {id(module) for module in around}
    for module in model.modules():
        if id(module) not in open_modules:
            module.__dict__[FROZEN] = True
            module.__dict__["train"] = partial(_stay, module)
            module.training = False


def trained_parts(model: Any, finetune: str) -> list[nn.Module]:
    """What "head" or a number of blocks leaves to be trained. Raises ConfigError as `freeze`."""
    blocks = list(model.blocks())
    count = 0 if finetune == "head" else int(finetune)
    require(
        count < len(blocks) or finetune == "head",
        f"--finetune {finetune}: {model_name(model)} has {len(blocks)} blocks, and all of them are --finetune all",
    )
    return [*heads_of(model), *blocks[len(blocks) - count :]]


def refuse_idle_rates(model: Any, finetune: str, optim: OptimConfig) -> None:
    """Raise ConfigError for rates of what lies below the last layer where nothing there is trained.

    A head may have several layers (VGG's has three): then those below its last one have these rates.
    """
    asked = {"--optim.backbone-lr": optim.backbone_lr != 0, "--optim.layer-decay": optim.layer_decay != 1}
    flags = [flag for flag, given in asked.items() if given]
    if finetune == "all" or not flags:
        return
    last = {id(one) for one in layers_of(model)[-1]}
    if any(id(one) not in last for part in trained_parts(model, finetune) for one in part.parameters()):
        return
    raise ConfigError(
        f"{' and '.join(flags)} {'are' if len(flags) > 1 else 'is'} for what lies below the last layer, and with "
        f"--finetune {finetune} nothing of the backbone of {model_name(model)} is trained: leave it out, or train its "
        "last N blocks too by --finetune N"
    )


def _stay(module: nn.Module, mode: bool = True) -> nn.Module:
    """In place of `train` of a frozen module."""
    return module


def is_frozen(module: nn.Module) -> bool:
    """Whether `freeze` has frozen it."""
    return FROZEN in module.__dict__


def frozen_text(model: nn.Module, states: float) -> str:
    """What is frozen and what that saves, in words; empty where nothing is.

    states  fp32 numbers that the optimizer keeps a parameter
    """
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    frozen, total = sum(size for size, trained in sizes if not trained), sum(size for size, _ in sizes)
    if not frozen:
        return ""
    blocks: list[nn.Module] = list(model.blocks())  # type: ignore[operator]
    first = sum(is_frozen(block) for block in blocks)
    below = f"no activation below block {first + 1}" if first < len(blocks) else "no activation below the head"
    return (
        f"frozen: {frozen / 1e6:.2f} M of {total / 1e6:.2f} M parameters, which saves "
        f"{4 * frozen * (1 + states) / 2**20:.0f} MiB of gradients and optimizer states; {below} is kept"
    )


def heads_of(model: Any) -> list[nn.Module]:
    """The modules that make logits: the head, and auxiliary heads where there are."""
    found = [getattr(model, name, None) for name in ("head", "auxiliary")]
    heads = [module for module in found if isinstance(module, nn.Module)]
    require(bool(heads), f"{model_name(model)} has no head that is told from the rest; train all of it")
    return heads


def model_name(model: Any) -> str:
    """What a message calls it."""
    return getattr(model, "arch", type(model).__name__)


def last_layer(model: Any) -> nn.Module:
    """The layer that makes the logits: `fc` of the head, or the last one of it with weights. Raises ConfigError."""
    head = heads_of(model)[0]
    named = dict(head.named_modules())
    if "fc" in named:
        return named["fc"]
    weighted = [module for module in head.modules() if list(module.parameters(recurse=False))]
    if not weighted:
        raise ConfigError(f"{model_name(model)}: its head has no weights")
    return weighted[-1]


def layers_of(model: Any) -> list[list[nn.Parameter]]:
    """Parameters from the images to the logits, a list a layer: each of `blocks()`, then the last linear layer.

    What is in no block, such as a class token, belongs to the first; what the head has before its last layer to the
    last block, as in timm.optim.param_groups_layer_decay.
    """
    blocks = list(model.blocks())
    heads = heads_of(model)
    last = list(last_layer(model).parameters()) + [one for module in heads[1:] for one in module.parameters()]
    seen = {id(parameter) for parameter in last}
    layers = [_new(block.parameters(), seen) for block in blocks] or [[]]
    layers[-1] += _new(heads[0].parameters(), seen)
    layers[0] += _new(model.parameters(), seen)
    return [*layers, last]


def _new(parameters: Iterable[nn.Parameter], seen: set[int]) -> list[nn.Parameter]:
    fresh = [parameter for parameter in parameters if id(parameter) not in seen]
    seen.update(id(parameter) for parameter in fresh)
    return fresh


def rate_scales(model: Any, config: OptimConfig) -> dict[int, float]:
    """id of each parameter -> its learning rate over --lr; empty where all have the same.

    --optim.backbone-lr is the rate of everything but the last layer; --optim.layer-decay multiplies once a layer from
    the logits down (Clark et al. 2020, arXiv:2003.10555; Bao et al. 2021, arXiv:2106.08254).
    """
    if not config.backbone_lr and config.layer_decay == 1:
        return {}
    backbone = config.backbone_lr / config.lr if config.backbone_lr else 1.0
    layers = layers_of(model)
    scales = {}
    for place, layer in enumerate(layers):
        below = len(layers) - 1 - place
        scale = config.layer_decay**below * (backbone if below else 1.0)
        scales |= {id(parameter): scale for parameter in layer}
    return scales
