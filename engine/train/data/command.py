"""`launch/data.py`: examines a data set and leaves what it found as lines, JSON, a page and a sheet of pictures."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

from engine.config import ConfigError, RunConfig
from engine.config.pixels.image_size import px
from engine.data.backend import make_loader
from engine.data.fingerprint import fingerprint_of
from engine.data.sources.source import DataError, Source
from engine.report.data_check.page import page
from engine.report.data_check.sheet import contact_sheet
from engine.report.data_check.told import lines
from engine.runs.door import atomic_file, writing
from engine.runs.output import refuse_folder
from engine.step.weights.pretrained import with_preprocessing
from engine.train.data.check import examined
from engine.train.run import choose_data, fail, show_notices

PICTURES = 40
"""On the sheet."""


def examine_data(config: RunConfig) -> int:
    """Examine the data that `config` names; returns the exit code.

    0 whatever was found, 1 where there are leaks and --data.on-leak is error, 2 for data that cannot be opened.
    """
    show_notices()
    try:
        config, source = choose_data(config)
        config = with_preprocessing(replace(config, augment=config.augment.whole()), source)
        output = config.log.output or Path("runs") / f"data-{source.name}-{time.strftime('%Y%m%d-%H%M%S')}"
        refuse_folder(output)
        data = fingerprint_of(source)
        found = examined(source, data, config)
        sheet = sheet_of(source, config)
    except (ConfigError, DataError, OSError) as error:
        return fail(error)
    with writing(output / "data.json"):
        output.mkdir(parents=True, exist_ok=True)
    name = str(config.data.root or source.name)
    written = json.dumps(found.as_dict(), indent=1, ensure_ascii=False).encode("utf-8", "backslashreplace")
    html = page(found, source, name, sheet, f"The first {PICTURES} images of a run: {told_of(config)}.")
    for file, content in (
        ("data.json", written),
        ("sheet.png", sheet),
        ("data.html", html.encode("utf-8", "backslashreplace")),
    ):
        with atomic_file(output / file) as temporary:
            temporary.write_bytes(content)
    print("\n".join(lines(found, config.data.side, str(config.data.root or ""))))
    print(f"written to {output}: data.html, data.json, sheet.png")
    return int(config.data.on_leak == "error" and bool(found.chosen("leaks")))


def sheet_of(source: Source, config: RunConfig) -> bytes:
    """A PNG of what the network sees of the first images of a run with that seed."""
    settings = {"augment": config.augment, "epochs": config.optim.epochs, "seed": config.seed}
    count = min(PICTURES, len(source.train))
    loader = make_loader(source, "train", config=config.data, global_batch=count, device="cpu", **settings)
    try:
        batch = next(iter(loader.epoch(0)))
        there = batch.weights > 0
        images, labels = batch.images[there].float().numpy(), batch.labels[there].numpy()
        return contact_sheet(images, labels, source.classes, loader.preprocessing)
    finally:
        loader.close()


def told_of(config: RunConfig) -> str:
    """What happens to the images, in words."""
    augmented = config.augment.describe()
    return f"{px(config.data.side)}, cut and mirrored at random{', ' + augmented if augmented else ''}"
