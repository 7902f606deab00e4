"""The command line's own part: flags that stand alone, and what is read before the full parse."""

from __future__ import annotations

from collections.abc import Sequence

try:
    import tyro
except ModuleNotFoundError:  # only parsing needs it: measuring from a source tree goes without
    tyro = None  # type: ignore[assignment]

TopLevel = tyro.conf.arg(prefix_name=False) if tyro else None
"""Marks a field whose flag stands alone, without its group: `--lr`, not `--optim.lr`."""


def expand_short_flags(arguments: Sequence[str]) -> list[str]:
    """Write out the flags that may stand without a value: --compile, --no-compile, --resume."""
    expanded: list[str] = []
    for position, argument in enumerate(arguments):
        following = arguments[position + 1] if position + 1 < len(arguments) else "--"
        if argument == "--no-compile":
            expanded += ["--compile", "off"]
        elif argument == "--compile" and following not in ("auto", "on", "off"):
            expanded += ["--compile", "on"]
        elif argument == "--resume" and following.startswith("--"):
            expanded += ["--resume", "auto"]
        else:
            expanded.append(argument)
    return expanded


def value_of(flag: str, arguments: Sequence[str]) -> str | None:
    """The last value given to `--flag VALUE` or `--flag=VALUE`, before the full parse."""
    found = None
    for position, argument in enumerate(arguments):
        if argument == flag and position + 1 < len(arguments):
            found = arguments[position + 1]
        elif argument.startswith(f"{flag}="):
            found = argument.partition("=")[2]
    return found
