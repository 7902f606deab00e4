"""A reference implementation's weights into ours, by renaming its keys."""

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os.path import commonprefix

import torch
from torch import Tensor, nn

from archs.channels import Normalised, for_channels
from archs.registry import Reference, constructor, lookup

CLASSIFIER = r"(head|auxiliary)\.(.*\.)?fc\.(weight|bias)$"
"""Keys of what has a row a class, in our networks."""
LOGITS = r"head\.(.*\.)?fc\.weight$"
"""Keys of the weights that make the logits, in our networks."""
SHOWN = 5
"""Keys named of each kind in an error; the rest are counted."""


class WeightsMismatch(ValueError):
    """The weights are not this network's; the message names keys."""


@dataclass(frozen=True)
class Loaded:
    """What `load_weights` did."""

    source: str
    """Whose keys the weights had: a reference's name, or "hcr"."""
    replaced: tuple[str, ...] = ()
    """Keys of heads that kept their initialisation: of another number of classes, or absent from the weights."""
    converted: str = ""
    """What was done to the stem for other channels, in words."""


def head_rows(tensors: Mapping[str, Tensor], pattern: str = LOGITS) -> int | None:
    """Classes that tensors under our keys make logits of; None where `pattern` finds no head among them."""
    heads = [key for key in tensors if re.match(pattern, key)]
    return int(tensors[heads[-1]].shape[0]) if heads else None


def logits_of(arch: str) -> str:
    """Pattern of the keys of the weights that make the logits of `arch`; a network from elsewhere has its own."""
    if ":" not in arch:
        return LOGITS
    with torch.device("meta"):
        return getattr(constructor(arch)(1), "logits_pattern", LOGITS)


def refuse_other_count(tensors: Mapping[str, Tensor], named: int, origin: str, pattern: str = LOGITS) -> None:
    """Raise WeightsMismatch, which begins with `origin`, unless the head has a row for each of `named` classes."""
    rows = head_rows(tensors, pattern)
    if rows is not None and rows != named:
        raise WeightsMismatch(f"{origin} names {named} classes, and its head is for {rows}")


def reference_of(arch: str, source: str) -> Reference:
    """How weights from `source` ("library:model") become those of `arch`; a pretrained tag (".tv_in1k") is ignored.

    Raises UnknownArch; ValueError that lists the references there are.
    """
    info = lookup(arch)
    for reference in info.references:
        if reference.source.partition(".")[0] == source.partition(".")[0]:
            return reference
    known = ", ".join(info.sources) or "no library's"
    raise ValueError(f"{info.name} takes no weights from {source!r} (it takes {known})")


def rename(state_dict: Mapping[str, Tensor], reference: Reference) -> dict[str, Tensor]:
    """The same tensors under our keys. Raises WeightsMismatch where two keys become one."""
    if reference.convert is not None:
        state_dict = reference.convert(state_dict)
    ours: dict[str, Tensor] = {}
    for key, tensor in state_dict.items():
        name = key
        for pattern, replacement in reference.renames:
            name = re.sub(pattern, replacement, name)
        if name in ours:
            raise WeightsMismatch(f"{reference.source}: two keys would become {name!r}, one of them {key!r}")
        ours[name] = tensor
    return ours


def load_reference(
    model: nn.Module,
    state_dict: Mapping[str, Tensor],
    arch: str,
    source: str,
    rows: Mapping[int, int] | None = None,
    normalised: tuple[Normalised | None, Normalised | None] = (None, None),
) -> Loaded:
    """Load a torchvision or timm state dict into `model`, in place; dtype and device stay the model's.

    arch    the name that `model` was built by
    source  one of its references, such as "torchvision:resnet18"
    rows    which rows of the head are kept, and `normalised`, as in `fit`

    See `fit` for what must match. Raises ValueError for a source that `arch` does not take weights from.
    """
    reference = reference_of(arch, source)
    return fit(model, rename(state_dict, reference), reference.source, rows, normalised)


def load_weights(
    model: nn.Module,
    state_dict: Mapping[str, Tensor],
    arch: str,
    rows: Mapping[int, int] | None = None,
    normalised: tuple[Normalised | None, Normalised | None] = (None, None),
    named: int | None = None,
) -> Loaded:
    """Load weights of unknown origin: ours or those of any reference of `arch`, whichever keys match best.

    rows   which rows of the head are kept, and `normalised`, as in `fit`
    named  how many classes the weights say that they know; None where they do not say

    Raises WeightsMismatch, with the model unchanged, that tells about the closest match, or of another count.
    """
    given, source = our_keys(state_dict, arch, model.state_dict().keys())
    if named is not None:
        refuse_other_count(given, named, "the file", getattr(model, "logits_pattern", LOGITS))
    return fit(model, given, source, rows, normalised)


def our_keys(
    state_dict: Mapping[str, Tensor], arch: str, wanted: Iterable[str] | None = None
) -> tuple[dict[str, Tensor], str]:
    """Weights of unknown origin under our keys, and whose they had: a reference's of `arch`, or "hcr".

    wanted  the network's keys; None is those of `arch` by its defaults
    """
    if wanted is None:
        with torch.device("meta"):
            wanted = constructor(arch)(1).state_dict().keys()
    wanted = set(wanted)
    candidates = {"hcr": _as_deep(state_dict, wanted)}
    for reference in lookup(arch).references:
        try:
            candidates[reference.source] = rename(state_dict, reference)
        except (WeightsMismatch, KeyError, RuntimeError):
            continue  # not this library's keys
    best = max(candidates, key=lambda source: len(wanted & candidates[source].keys()))
    return candidates[best], best


def _as_deep(state_dict: Mapping[str, Tensor], wanted: set[str]) -> dict[str, Tensor]:
    """The tensors behind as much of what all `wanted` names begin with as makes the most of them wanted.

    A network of a library or of one's own lies within another module here, so that its names begin alike; a file has
    them without that, by who wrote it or because what all names begin with was taken for a trainer's.
    """
    parts = commonprefix([*wanted]).split(".")[:-1]  # noqa: RUF071 (names, not paths)
    behind = ["".join(f"{part}." for part in parts[:count]) for count in range(len(parts) + 1)]
    best = max(behind, key=lambda prefix: sum(f"{prefix}{key}" in wanted for key in state_dict))
    return {f"{best}{key}": tensor for key, tensor in state_dict.items()}


def fit(
    model: nn.Module,
    given: Mapping[str, Tensor],
    source: str,
    rows: Mapping[int, int] | None = None,
    normalised: tuple[Normalised | None, Normalised | None] = (None, None),
) -> Loaded:
    """Load tensors under our keys into `model`, in place; dtype and device stay the model's.

    Every parameter and running statistic must be given, with its shape, and nothing more. Only
    `num_batches_tracked` may be missing (checkpoints from before torch 0.4.1 lack it): ours is kept. A head for
    another number of classes keeps its initialisation, and so do auxiliary heads where the weights have none: the
    result names their keys. Auxiliary heads that the model was built without are left out.

    rows  our class -> the weights' class of the same name: these rows of every head are kept and the others keep their
          initialisation, however many classes there are. None: nobody knows the names, a head of as many is kept
    normalised  the images of the weights and of the model, by which a stem for grey images becomes one for coloured
                ones or the reverse (archs.channels)

    Raises WeightsMismatch, with the model unchanged, that names what is missing, left over or of another shape, and
    our nearest name for what is left over.
    """
    given, wanted = dict(given), model.state_dict()
    theirs, ours = ({key for key in keys if key.startswith("auxiliary.")} for keys in (given, wanted))
    for key, tensor in wanted.items():
        if key.endswith("num_batches_tracked"):
            given.setdefault(key, tensor)
    if not ours:
        given = {key: tensor for key, tensor in given.items() if key not in theirs}
    classifiers = _classifiers(given, wanted, getattr(model, "classifier_pattern", CLASSIFIER))
    if rows is not None:
        given |= {key: _with_rows(given[key], wanted[key], rows) for key in classifiers}
    replaced = [key for key in classifiers if rows == {} or given[key].shape != wanted[key].shape]
    replaced += [key for key in wanted if key in ours and not theirs]
    given |= {key: wanted[key] for key in replaced}
    converted = for_channels(model, given, *normalised)
    given = converted.tensors
    shapes = [
        f"{key} {list(given[key].shape)} for our {list(wanted[key].shape)}"
        for key in wanted
        if key in given and given[key].shape != wanted[key].shape
    ]
    missing = [key for key in wanted if key not in given]
    left = [key for key in given if key not in wanted]
    problems = [
        _listing("missing", missing),
        _listing("left over", [_with_nearest(key, missing) for key in left]),
        _listing("of another shape", shapes),
    ]
    if any(problems):
        raise WeightsMismatch(f"these weights do not fit as {source}: {'; '.join(filter(None, problems))}")
    model.load_state_dict(given)
    return Loaded(source, tuple(replaced), converted.told)


def _classifiers(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], pattern: str) -> list[str]:
    """Keys of the tensors with a row a class, which are right but for the number of classes."""
    classifier = re.compile(pattern)
    return [
        key
        for key in wanted
        if classifier.match(key) and key in given and given[key].shape[1:] == wanted[key].shape[1:]
    ]


def _with_rows(given: Tensor, wanted: Tensor, rows: Mapping[int, int]) -> Tensor:
    """`wanted` with these rows from `given`. Raises WeightsMismatch where there are fewer than were named."""
    if rows and max(rows.values()) >= len(given):
        raise WeightsMismatch(f"the weights name at least {max(rows.values()) + 1} classes and have {len(given)}")
    mixed = wanted.clone()
    mixed[list(rows)] = given[list(rows.values())].to(mixed)
    return mixed


def _with_nearest(key: str, missing: list[str]) -> str:
    near = difflib.get_close_matches(key, missing, n=1, cutoff=0.6)
    return f"{key} (nearest: {near[0]})" if near else key


def _listing(kind: str, keys: Iterable[str]) -> str:
    keys = list(keys)
    if not keys:
        return ""
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return f"{len(keys)} {kind}: {', '.join(keys[:SHOWN])}{more}"
