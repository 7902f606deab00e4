"""Which images belong together, such as the pictures of one patient: they are never on both sides of a split."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from engine.data.sources.source import DataError


def groups_of(paths: Sequence[str] | None, pattern: str) -> list[str]:
    """The group of each image: what the first group of `pattern`, or all of it, matches in its path.

    Raises DataError where a path has none.
    """
    if paths is None:
        raise DataError("images that are no files have no path that could name their group")
    compiled = re.compile(pattern)
    found = []
    for path in paths:
        match = compiled.search(path)
        if match is None:
            raise DataError(f"no group in {path}: the pattern {pattern} does not match")
        found.append((match[1] or "") if match.groups() else match[0])
    return found


def refuse_shared_groups(groups: Mapping[str, Sequence[str]], paths: Mapping[str, Sequence[str]]) -> None:
    """Raise DataError where two splits have images of one group, naming an image of each.

    groups  of each split's images, by the split's name
    paths   their names, for the message
    """
    owner: dict[str, str] = {}
    for name, own in groups.items():
        for group in dict.fromkeys(own):
            if (other := owner.setdefault(group, name)) != name:
                first, second = groups[other].index(group), own.index(group)
                raise DataError(
                    f"group {group} is on both sides: {paths[other][first]} in {other}, {paths[name][second]} in {name}"
                )
