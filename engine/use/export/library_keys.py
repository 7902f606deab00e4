"""Our weights under timm's or torchvision's own keys: the renaming of archs.weights, backwards.

A library's tensors are filled with their elements' numbers and sent through the renaming that loads them here. What
comes out tells, for each of our elements, where it came from, whatever was renamed, reshaped or put in another order.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

import archs
from archs.foreign import timm_size
from archs.registry import Reference
from archs.weights import rename
from engine.config import ConfigError, require
from engine.config.pixels.image_size import ImageSize, px


def reference_for(arch: str, library: str) -> Reference:
    """The model of `library` ("timm" or "torchvision") that `arch` has the structure of. Raises ConfigError."""
    info = archs.lookup(arch)
    for reference in info.references:
        if reference.source.startswith(f"{library}:"):
            return reference
    others = ", ".join(info.peers)
    there = f"it has that of {others}" if others else "no library has it"
    raise ConfigError(f"{info.name} has no model of {library} to be saved as ({there})")


def library_model(
    source: str, num_classes: int, image_size: ImageSize, auxiliary: bool = False, channels: int = 3
) -> nn.Module:
    """The library's own model, with weights of its own draw; auxiliary heads only where they are asked for.

    Raises ConfigError where the library is not installed or refuses the size.
    """
    library, _, name = source.partition(":")
    try:
        if library == "timm":
            import timm

            size = timm_size(name, image_size)
            extra = {"aux_logits": auxiliary} if name == "inception_v3" else {}
            return timm.create_model(
                name, pretrained=False, num_classes=num_classes, in_chans=channels, **size, **extra
            )
        require(channels == 3, f"{source} is for coloured images; --format safetensors-timm takes grey ones")
        from torchvision import models

        size = {"image_size": image_size} if name.startswith("vit") else {}
        extra = {"aux_logits": auxiliary, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
        return models.get_model(name, weights=None, num_classes=num_classes, **size, **extra)
    except ImportError:
        raise ConfigError(f"{source}: {library} is not installed: pip install {library}") from None
    except (ValueError, TypeError, AssertionError) as error:
        raise ConfigError(f"{source} cannot be built for {num_classes} classes and {px(image_size)}: {error}") from None


def under_library_keys(tensors: Mapping[str, Tensor], reference: Reference, theirs: nn.Module) -> dict[str, Tensor]:
    """Our tensors as the state dict of `theirs`; what ours have no place for stays as it is there.

    Raises ConfigError where a tensor of ours has no place, or does not fit into it.
    """
    state = {key: tensor.clone() for key, tensor in theirs.state_dict().items()}
    numbered, first = {}, 0
    for key, tensor in state.items():
        numbered[key] = torch.arange(first, first + tensor.numel()).reshape(tensor.shape)
        first += tensor.numel()
    places = rename(numbered, reference)
    homeless = [key for key in tensors if key not in places]
    if homeless:
        raise ConfigError(f"{reference.source} has no place for {', '.join(homeless[:5])}")
    whole = {key: numbers.flatten() for key, numbers in places.items()}
    keys = [key for key, numbers in numbered.items() if numbers.numel()]
    starts = torch.tensor([int(numbered[key].flatten()[0]) for key in keys])
    for key, tensor in tensors.items():
        if tensor.shape != places[key].shape:
            raise ConfigError(f"{reference.source}: {key} is {list(tensor.shape)}, its place {list(places[key].shape)}")
        if not tensor.numel():
            continue
        place = int(torch.searchsorted(starts, whole[key][0], right=True)) - 1
        home, numbers = keys[place], whole[key] - starts[place]
        if int(numbers.min()) < 0 or int(numbers.max()) >= state[home].numel():
            raise ConfigError(f"{reference.source}: {key} is of more than one tensor, which cannot be taken apart here")
        state[home].view(-1)[numbers] = tensor.flatten().to(state[home].dtype)
    return state
