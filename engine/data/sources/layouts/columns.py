"""Which column of a list holds what: by its name, else by what is in it, or as `--data.columns` says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine.data.sources.listing import EXTENSIONS
from engine.data.sources.source import DataError

NAMES = {
    "path": {
        *("path", "filepath", "file", "filename", "image", "imagepath", "imagefile", "imagename", "img", "imgpath"),
        *("relpath", "relativepath", "imgname", "imgfile", "picture", "photo"),
    },
    "label": {
        *("label", "labels", "class", "classname", "classid", "category", "categoryname", "categoryid", "target"),
        *("labelname", "labelid", "y", "species", "breed", "diagnosis"),
    },
    "split": {"split", "subset", "set", "partition", "phase", "usage"},
    "group": {"group", "groupid", "groups", "patient", "patientid", "subject", "subjectid"},
}
"""Usual names of each role, in small letters, without blanks and strokes."""
NEEDED = ("path", "label")


def chosen_columns(
    where: str,
    columns: Sequence[str],
    samples: Mapping[str, Sequence[str]],
    told: str,
    needed: Sequence[str] = NEEDED,
    flag: str = "--data.columns",
) -> dict[str, str]:
    """The column of each role that the list has.

    where    the list, for messages
    samples  the first values of each column
    told     the flag's value, as `path=file,label=breed`; what it names is not guessed
    needed   roles that have to be found; "path" among them unless the images are in the list itself

    Raises DataError for a column that is not there, and where a role may be either of two columns.
    """
    found = told_columns(where, columns, told, flag)
    free = [name for name in columns if name not in found.values()]
    for role, usual in NAMES.items():
        if role in found:
            continue
        named = [name for name in free if plain(name) in usual]
        if role == "path" and len(named) != 1:
            named = [name for name in named or free if _are_pictures(samples[name])]
        if not named and role == "label" and "label" in needed:
            taken = {plain(name) for one in ("split", "group", "path") for name in free if plain(name) in NAMES[one]}
            named = [name for name in free if plain(name) not in taken]
            if len(named) > 1:
                raise DataError(
                    f"{where}: no column is called label or class, and it may be any of {', '.join(named)}; "
                    f"name it: {flag} label={named[0]}"
                )
        if len(named) > 1 and (role in needed or role == "split"):
            raise DataError(
                f"{where}: {' and '.join(named)} could each be the {role}; name it: {flag} {role}={named[0]}"
            )
        if len(named) == 1:
            found[role] = named[0]
            free.remove(named[0])
        elif role in needed:
            raise DataError(
                f"{where}: no column is the {role} (it has {', '.join(columns)}); name it: {flag} {role}=COLUMN"
            )
    return {role: found[role] for role in NAMES if role in found}


def told_columns(where: str, columns: Sequence[str], told: str, flag: str) -> dict[str, str]:
    """The columns that the flag names, by role. Raises DataError for a role or a column that is not there."""
    found: dict[str, str] = {}
    for part in filter(None, (one.strip() for one in told.split(","))):
        role, equals, name = part.partition("=")
        if role not in NAMES or not equals:
            raise DataError(f"{flag} {told!r}: {part!r} is not ROLE=COLUMN with one of {', '.join(NAMES)}")
        if name not in columns:
            raise DataError(f"{where}: {flag} names {name!r} as the {role}; there are {', '.join(columns)}")
        found[role] = name
    return found


def plain(name: str) -> str:
    """A column's name in small letters, without blanks and strokes."""
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _are_pictures(values: Sequence[str]) -> bool:
    return bool(values) and sum(str(value).lower().endswith(EXTENSIONS) for value in values) > len(values) / 2
