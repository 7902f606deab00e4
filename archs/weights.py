"""A reference implementation's weights into ours, by renaming its keys."""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from archs.registry import by_reference

SHOWN = 5
"""Keys named of each kind in an error; the rest are counted."""


class WeightsMismatch(ValueError):
    """The weights are not this network's; the message names keys."""


def rename(state_dict: Mapping[str, Tensor], reference: str) -> dict[str, Tensor]:
    """The same tensors under our keys.

    reference  as in `ArchInfo.reference`, such as "torchvision:resnet18"

    Raises ValueError for a reference that no network has, WeightsMismatch where two keys become one.
    """
    renames = by_reference(reference).renames
    ours: dict[str, Tensor] = {}
    for key, tensor in state_dict.items():
        name = key
        for pattern, replacement in renames:
            name = re.sub(pattern, replacement, name)
        if name in ours:
            raise WeightsMismatch(f"{reference}: two keys would become {name!r}, one of them {key!r}")
        ours[name] = tensor
    return ours


def load_reference(model: nn.Module, state_dict: Mapping[str, Tensor], reference: str) -> None:
    """Load a torchvision or timm state dict into `model`, in place; dtype and device stay the model's.

    Strict: every parameter and running statistic must be given, with its shape, and nothing more. Only
    `num_batches_tracked` may be missing (checkpoints from before torch 0.4.1 lack it): ours is kept.

    Raises ValueError for a reference that no network has; WeightsMismatch, with the model unchanged,
    that names what is missing, what is left over and what has another shape.
    """
    given = rename(state_dict, reference)
    wanted = model.state_dict()
    for key, tensor in wanted.items():
        if key.endswith("num_batches_tracked"):
            given.setdefault(key, tensor)
    shapes = [
        f"{key} {list(given[key].shape)} for our {list(wanted[key].shape)}"
        for key in wanted
        if key in given and given[key].shape != wanted[key].shape
    ]
    problems = [
        _listing("missing", [key for key in wanted if key not in given]),
        _listing("left over", [key for key in given if key not in wanted]),
        _listing("of another shape", shapes),
    ]
    if any(problems):
        raise WeightsMismatch(f"these weights do not fit as {reference}: {'; '.join(filter(None, problems))}")
    model.load_state_dict(given)


def _listing(kind: str, keys: Iterable[str]) -> str:
    keys = list(keys)
    if not keys:
        return ""
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return f"{len(keys)} {kind}: {', '.join(keys[:SHOWN])}{more}"
