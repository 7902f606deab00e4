"""After a crash in native code: which image the decoder does not survive, so that the run goes on without it.

The images that were with the decoder (engine.data.decoding_watch) are decoded again in processes of their own, all at
once and then one by one; Pillow gets a try at what crashes. What is found stays in the run folder, as it would crash
the next start too.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

from engine.data.decoding_watch import Crash, crashes_in, forget_crashes
from engine.runs.provenance import ROOT
from engine.runs.runfolder import RunFolder

logger = logging.getLogger("hcr")

NAME = "decoder-crashes.json"
PILLOW = ""
"""In place of a reason: Pillow decodes it."""
SECONDS = 600.0
"""A group of images that is not decoded by then hangs."""

Way = Literal["together", "singly", "pillow"]
"""Through the run's loader in one batch or one by one, or one by one by Pillow alone."""


class Decodes(Protocol):
    """Decodes images in a process of its own."""

    def __call__(self, split: str, names: Sequence[str], way: Way) -> str | None:
        """The image that it died with, any of them where they came together; None where it survives them all."""


def known_crashes(folder: Path) -> dict[str, str]:
    """Names of images that the decoder does not survive, with the reason, or PILLOW where that decodes them."""
    try:
        found = json.loads((folder / NAME).read_text(encoding="utf-8"))
        return {str(name): str(reason) for name, reason in found.items()}
    except (OSError, ValueError, AttributeError):
        return {}


def after_crashes(folder: RunFolder, decodes: Decodes | None = None) -> None:
    """Look at what crashed in the folder's earlier start, write down what is found, and say it. For the owner."""
    decodes = decodes or DecodesAlone(folder.path)
    for crash in crashes_in(folder.path):
        count = sum(map(len, crash.decoding.values()))
        if not count:
            logger.info("note: the start before this one crashed (%s), with no image at the decoder", crash.signal)
            continue
        logger.info(
            "the start before this one crashed in native code (%s) with %d images at the decoder; they are tried alone",
            crash.signal,
            count,
        )
        found = culprits(crash, decodes)
        folder.write_json(NAME, known_crashes(folder.path) | found)
        for name, reason in found.items():
            told = f"left out ({reason})" if reason else "decoded by Pillow from now on"
            logger.info("%s crashes the decoder: %s", name, told)
            folder.append("event", event="decoder_crash", path=name, signal=crash.signal, outcome=told)
        if not found:
            logger.info("all of them decode: the crash came from elsewhere, or does not repeat")
    forget_crashes(folder.path)


def culprits(crash: Crash, decodes: Decodes) -> dict[str, str]:
    """The images of a crash that a decoder's process does not survive, with what becomes of each."""
    found = {}
    for split, names in crash.decoding.items():
        if not names or decodes(split, names, "together") is None:
            continue
        alone = dying(split, names, decodes, "singly")
        for name in alone or names:  # none alone: some only in company, and Pillow takes them one by one
            died = decodes(split, [name], "pillow")
            found[name] = PILLOW if died is None else f"crashes the decoder: {crash.signal}"
    return found


def dying(split: str, names: Sequence[str], decodes: Decodes, way: Way) -> list[str]:
    """The images, one by one, with which a process dies; those behind one are tried in a new process."""
    found, left = [], list(names)
    while left and (name := decodes(split, left, way)) is not None:
        found.append(name)
        left = left[left.index(name) + 1 :]
    return found


class DecodesAlone:
    """`Decodes` of a run's data."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, split: str, names: Sequence[str], way: Way) -> str | None:
        """A process that ends in words for another reason survives too, and that is said."""
        asked = {"run": str(self.folder.resolve()), "split": split, "names": list(names), "way": way}
        with tempfile.TemporaryFile("w+") as told:
            try:
                done = subprocess.run(
                    [sys.executable, "-m", "engine.train.decode_alone"],
                    input=json.dumps(asked),
                    text=True,
                    env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
                    stdout=told,
                    stderr=subprocess.PIPE,
                    timeout=SECONDS,
                )
            except subprocess.TimeoutExpired:
                pass
            else:
                if done.returncode > 0:
                    said = (done.stderr.strip().splitlines() or [""])[-1]
                    logger.info("note: images could not be tried alone: %s", said)
                if done.returncode >= 0:
                    return None
            told.seek(0)
            begun = [line for line in told.read().splitlines() if line.isdecimal()]
        return names[int(begun[-1])] if begun else names[0]
