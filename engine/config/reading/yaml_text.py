"""A YAML file as plain values, whatever somebody put where a description should be; its 1.1 words as they are meant."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from engine.config.checks import ConfigError, require

MOST_BYTES = 1 << 20
"""Of a description; the largest has some two thousand."""

DEEPEST = 20
"""Groups within groups; a description has two."""
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's: the one in Python takes minutes for some thousand opening brackets."""


def read_yaml(path: Path, origin: str) -> tuple[str, dict[str, Any]]:
    """(text, tree) of a YAML file. Raises ConfigError, which begins with `origin`, for anything else.

    Aliases are refused: ten lines of ten of them each would take all memory to write out.
    """
    try:
        if not path.exists():
            near = sorted(str(other) for other in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
            raise ConfigError(f"{origin}: no such file" + (f"; there is {', '.join(near)}" if near else ""))
        require(path.is_file(), f"{origin}: not a file")
        require(path.stat().st_size <= MOST_BYTES, f"{origin}: larger than any description ({MOST_BYTES:,} bytes)")
        text = path.read_text(encoding="utf-8")
        depth = 0
        for event in yaml.parse(text, Loader=LOADER):
            require(
                not isinstance(event, yaml.AliasEvent), f"{origin}: aliases (*name) are not read; write the values out"
            )
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            require(depth <= DEEPEST, f"{origin}: nested too deeply")
        _refuse_twice(yaml.compose(text, Loader=LOADER), origin)
        tree = yaml.load(text, Loader=LOADER)
    except ConfigError:
        raise
    except RecursionError:
        raise ConfigError(f"{origin}: nested too deeply") from None
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        what = " ".join(str(error).split())
        raise ConfigError(f"{origin}: cannot be read as YAML: {what}") from None
    tree = {} if tree is None else tree
    require(isinstance(tree, dict), f"{origin}: expected fields and values, found {type(tree).__name__}")
    return text, tree


def _refuse_twice(node: yaml.Node | None, origin: str) -> None:
    """Raise ConfigError for a key that stands twice in one group: YAML's reader takes the last without a word."""
    if isinstance(node, yaml.SequenceNode):
        for part in node.value:
            _refuse_twice(part, origin)
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if isinstance(key, yaml.ScalarNode):
            first = lines.get(key.value)
            require(first is None, f"{origin}: {key.value} stands twice, in lines {first} and {line}")
            lines[key.value] = line
        _refuse_twice(value, origin)


def as_meant(kind: Any, tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The tree with YAML 1.1's words where a choice is meant: `off` is false to YAML, and `off` to who wrote it.

    kind  the dataclass that the tree describes

    Raises ConfigError for true or false where a number is meant.
    """
    hints, meant = get_type_hints(kind), {}
    for name, value in tree.items():
        hint = hints.get(name)
        if dataclasses.is_dataclass(hint) and isinstance(value, dict):
            value = as_meant(hint, value, f"{prefix}{name}.")
        elif isinstance(value, bool) and hint is not None:
            words = choices(hint)
            if "on" in words or hint is str:  # of text fields, gpu_memory knows `off`
                value = ("on" if "on" in words else "true") if value else "off"
            require(not _is_number(hint), f"{prefix}{name}: expected a number, found {str(value).lower()}")
        elif value is None and "none" in choices(hint) and type(None) not in get_args(hint):
            value = "none"
        meant[name] = value
    return meant


def choices(hint: Any) -> tuple[Any, ...]:
    """The words of a Literal, also of one beside others; none of other types."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    return tuple(word for part in get_args(hint) if get_origin(part) is Literal for word in get_args(part))


def _is_number(hint: Any) -> bool:
    kinds = (hint, *get_args(hint))
    return bool not in kinds and (int in kinds or float in kinds)
