"""`--recipe resnet18/paper`: a description under configs/recipes/, by the name of its network and of its origin."""

from __future__ import annotations

import difflib
from pathlib import Path

from engine.config.checks import ConfigError

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "recipes"


def recipe_names() -> list[str]:
    """Every recipe as NETWORK/ORIGIN, in order."""
    return sorted(path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.glob("*/*.yaml"))


def recipe_file(name: str) -> Path:
    """Where the recipe of that name is. Raises ConfigError with the nearest names where there is none."""
    names = recipe_names()
    if name in names:
        return FOLDER / f"{name}.yaml"
    network = name.partition("/")[0]
    near = [other for other in names if other.partition("/")[0] == network]
    near = near or difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    told = f"; did you mean {' or '.join(near)}?" if near else f"; there are {', '.join(names)}"
    raise ConfigError(f"--recipe {name}: there is no such recipe{told}")
