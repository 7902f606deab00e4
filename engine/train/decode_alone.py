"""Decodes some images of a run's data and ends, or does not: `python -m engine.train.decode_alone < asked.json`.

asked   run: its folder; split; names of images; way: together, singly or pillow, as in engine.train.decoder_crash

Prints the place in `names` of each image before it is decoded, 0 where they come together.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from engine.config import from_yaml
from engine.data.backend import make_loader
from engine.data.bad_images import decode
from engine.data.decoding_watch import DecoderDied
from engine.data.opened import open_data
from engine.data.sources.reading import Unreadable
from engine.step.plan import use_cuda


def main() -> None:
    """Decode what standard input asks for."""
    asked = json.load(sys.stdin)
    run = Path(asked["run"])
    config = from_yaml(run / "config.yaml")
    data = replace(config.data, limit=0, on_bad_image="skip", workers=0 if asked["way"] == "together" else 1)
    source = open_data(data, download=False, run=run)
    split = source.split(asked["split"])
    index_of = {path: index for index, path in enumerate(split.paths or [])}
    there = [(place, index_of[name]) for place, name in enumerate(asked["names"]) if name in index_of]
    if asked["way"] == "pillow":
        for place, index in there:
            print(place, flush=True)
            with suppress(Unreadable):  # told by the run itself, which meets it again
                decode(split.read(index))
        return
    groups = [there] if asked["way"] == "together" else [[one] for one in there]
    for group in filter(None, groups):
        print(group[0][0], flush=True)
        loader = make_loader(
            source,
            asked["split"],
            config=data,
            global_batch=len(group),
            device="cuda" if use_cuda() else "cpu",
            seed=config.seed,
            minimum_share=1,
            only=np.array([index for _, index in group]),
        )
        try:
            for _ in loader.epoch(0):
                pass
        except DecoderDied:
            os.abort()  # as where the decoder is in this process
        loader.close()


if __name__ == "__main__":
    main()
