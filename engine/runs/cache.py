"""Where runs keep what is made or fetched once."""

import os
from pathlib import Path


def cache_folder(cache: Path | str | None = None) -> Path:
    """The folder for what is made or downloaded once: `cache`, or $HCR_CACHE, or ~/.cache/hcr."""
    return Path(cache or os.environ.get("HCR_CACHE") or Path.home() / ".cache" / "hcr").expanduser()
