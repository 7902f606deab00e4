"""The images below a folder: each folder once, hidden and system folders left out, and what was left out counted."""

from __future__ import annotations

import logging
import os
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

logger = logging.getLogger("hcr")

EXTENSIONS = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".avif")
"""Names that count as images, in any case; what is inside decides how they are decoded."""
MAY_MOVE = (".gif",)
"""Of these the first picture is read."""
NOT_READ = (".heic", ".heif", ".jxl", ".jp2", ".j2k", ".svg", ".psd", ".tga", ".ico", ".pcx", ".dng", ".cr2", ".nef")
"""Names of pictures that are left out, and counted so that it is noticed."""
SYSTEM_FOLDERS = {
    *("__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found", "#recycle", "@recycle"),
    *("__pycache__", "thumbs.db", "#snapshot", ".trash"),
}
"""Folders that operating systems, network disks and editors make, with copies and thumbnails; in small letters."""


@cache
def readable_extensions() -> tuple[str, ...]:
    """EXTENSIONS without those that this Pillow cannot decode."""
    from PIL import features

    return EXTENSIONS if features.check("avif") else tuple(one for one in EXTENSIONS if one != ".avif")


def is_aside(name: str) -> bool:
    """Whether a folder of that name is hidden or a system's own."""
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS


@dataclass
class Listing:
    """What was met while folders were listed."""

    entered: set[tuple[int, int]] = field(default_factory=set)
    """Device and inode of the folders that were listed, or are about to be under another name."""
    aside: Counter[str] = field(default_factory=Counter)
    """Images in hidden and system folders, by folder."""
    links: list[str] = field(default_factory=list)
    """Links to folders that are listed anyway."""
    unread: Counter[str] = field(default_factory=Counter)
    """Pictures of formats that are not read, by ending."""
    moving: int = 0
    """Files of which the first picture is read."""
    others: Counter[str] = field(default_factory=Counter)
    """Files that are not called like pictures that are read, by ending; hidden ones are not counted."""
    other: str = ""
    """The first of them."""

    def enter(self, folder: str) -> bool:
        """Whether `folder` is new; from now on it is not."""
        key = identity(folder)
        if key is None or key in self.entered:
            return False
        self.entered.add(key)
        return True

    def below(self, folder: str) -> list[str]:
        """Sorted paths of the images below `folder`. Links to folders are followed, each folder is entered once."""
        endings, found = readable_extensions(), []
        for parent, folders, names in os.walk(folder, followlinks=True):
            keep = []
            for name in sorted(folders):
                path = os.path.join(parent, name)  # noqa: PTH118 (a million paths: strings, not Path objects)
                if is_aside(name):
                    self._count_aside(path)
                elif self.enter(path):
                    keep.append(name)
                else:
                    self.links.append(path)
            folders[:] = keep
            for name in names:
                ending = os.path.splitext(name)[1].lower()  # noqa: PTH122 (as above)
                if name.startswith("."):
                    continue
                if ending in endings:
                    found.append(os.path.join(parent, name))  # noqa: PTH118 (as above)
                    self.moving += ending in MAY_MOVE
                    continue
                self.others[ending] += 1
                path = os.path.join(parent, name)  # noqa: PTH118 (as above)
                self.other = min(self.other or path, path)
                if ending in NOT_READ or ending in EXTENSIONS:
                    self.unread[ending] += 1
        return sorted(found)

    def _count_aside(self, folder: str) -> None:
        for _, _, names in os.walk(folder):
            if count := sum(name.lower().endswith(EXTENSIONS) for name in names):
                self.aside[folder] += count

    def tell(self, split: str) -> None:
        """Say what was left out of a split, and what is read otherwise than one may think."""
        if self.aside:
            folders = ", ".join(sorted(self.aside)[:3]) + (" …" if len(self.aside) > 3 else "")
            logger.info(
                "left out of %s: %d images in hidden or system folders (%s)", split, sum(self.aside.values()), folders
            )
        if self.unread:
            kinds = ", ".join(f"{count} {ending}" for ending, count in sorted(self.unread.items()))
            logger.info("left out of %s: pictures of formats that are not read (%s)", split, kinds)
        if self.links:
            logger.info(
                "left out of %s: %d links to folders that are listed already (%s)",
                split,
                len(self.links),
                ", ".join(self.links[:3]) + (" …" if len(self.links) > 3 else ""),
            )
        if self.moving:
            logger.info("%s has %d .gif files: of each the first picture is read", split, self.moving)


def identity(folder: str | Path) -> tuple[int, int] | None:
    """Device and inode; None for what is not there or may not be looked at."""
    try:
        found = os.stat(folder)  # noqa: PTH116 (as above)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def images_below(folder: Path) -> list[str]:
    """Sorted paths of the image files below `folder`; links to folders are followed, each folder once."""
    listing = Listing()
    listing.enter(str(folder))
    return listing.below(str(folder))
