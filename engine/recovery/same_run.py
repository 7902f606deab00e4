"""Whether a run that goes on is still the same one, on the same data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from engine.config import ConfigError, RunConfig, flatten, from_yaml
from engine.data.fingerprint import Fingerprint
from engine.runs.wording import listed

FREE_TO_CHANGE = {
    *("config", "resume", "recipe", "optim.epochs", "model.compile", "model.fused", "model.cuda_graph"),
    *("data.on_leak", "data.root", "data.workers", "data.prefetch", "data.readers", "parallel.threads"),
    "parallel.timeout",
    *("memory.gpu_memory", "memory.recompute", "memory.offload", "parallel.micro_batch_size"),
}
"""Fields besides the groups `log` and `stop` that a resumed run may change without becoming another run. Micro-batches
are among them, as a run that is short of memory changes them by itself."""


def run_identity(config: RunConfig) -> dict[str, Any]:
    """The fields that make a run what it is, as plain values by their dotted names."""
    return {
        name: list(value) if isinstance(value, tuple) else None if value is None else plain(value)
        for name, value in flatten(asdict(config))
        if name not in FREE_TO_CHANGE and not name.startswith(("log.", "stop."))
    }


def plain(value: Any) -> Any:
    """A value as JSON knows it; a path as text."""
    return str(value) if isinstance(value, Path) else value


def refuse_other_run(config: RunConfig, folder: Path) -> None:
    """Raise ConfigError where flags would turn the run in `folder` into another one."""
    if changed := changes(run_identity(from_yaml(folder / "config.yaml")), run_identity(config)):
        raise ConfigError(
            f"--resume {folder}: these flags would make it another run: {changed}; leave them out, or start a new run"
        )


def changes(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Each field that both sides have with different values, as `optim.lr 0.1 -> 0.5`."""
    return ", ".join(
        f"{name} {before[name]} -> {now[name]}" for name in now if name in before and before[name] != now[name]
    )


def refuse_other(
    state: dict[str, Any], config: RunConfig, data: Fingerprint, steps_per_epoch: int, checkpoint: Path
) -> str | None:
    """Compare what a checkpoint was trained on with what is here; returns how the images differ, None for not at all.

    state  the checkpoint's contents; older ones say neither `run` nor `data`

    Raises ConfigError for a run of other fields, for other classes, for other images where folds are drawn from them,
    and in the middle of an epoch for another number of images: which of them were seen in it is not known then.
    """
    if changed := changes(state.get("run", {}), run_identity(config)):
        raise ConfigError(
            f"checkpoint {checkpoint} was written by a run of other fields: {changed}; config.yaml was edited or is of "
            "another run. Put them back, or start a new run"
        )
    trained = Fingerprint.from_dict(state.get("data"))
    refuse_other_classes(trained and trained.classes, data.classes, f"checkpoint {checkpoint}")
    change = trained and other_images(trained, data)
    if change and config.data.folds:
        raise ConfigError(
            f"checkpoint {checkpoint} was trained on {config.data.folds} folds less one, and {change} since: folds are "
            "drawn from all images, so images that were trained on would be tested on. Put the images back, or start "
            "a new run"
        )
    done = state["progress"]["step_in_epoch"]
    if done > steps_per_epoch or (done and trained and trained.train_images != data.train_images):
        raise ConfigError(
            f"checkpoint {checkpoint} was written after step {done} of an epoch, and {change or 'the data changed'} "
            f"since: an epoch has {steps_per_epoch} steps now and other images in them. Put the images back, resume "
            "from a checkpoint at an epoch's end, or start a new run (--pretrained FOLDER begins with its weights)"
        )
    return change


def refuse_other_classes(trained: Sequence[str] | None, given: Sequence[str], what: str) -> None:
    """Raise ConfigError unless the data's classes are those that were trained on, in order.

    trained  names in the order of the outputs; None where that is not known
    what     begins the message: which weights
    """
    if trained is None or list(trained) == list(given):
        return
    lacking = [name for name in trained if name not in set(given)]
    new = [name for name in given if name not in set(trained)]
    shown, here = listed(trained, given), listed(given, trained)
    both = f"trained on {len(trained)} classes ({shown}), the data has {len(given)} classes ({here})"
    if not lacking and not new:
        raise ConfigError(f"{what}: the same classes in another order, {both}")
    raise ConfigError(
        f"{what}: other classes, {both}; only in training: {listed(lacking, given) or 'none'}; only in the data: "
        f"{listed(new, trained) or 'none'}"
    )


def other_images(trained: Fingerprint, given: Fingerprint) -> str | None:
    """How the images differ from those that were trained on, in words; None where they are the same."""
    if trained.digest == given.digest:
        return None
    counts = [
        f"{before:,} -> {now:,} {name} images"
        for name, before, now in (
            ("training", trained.train_images, given.train_images),
            ("val", trained.val_images, given.val_images),
        )
        if before != now
    ]
    return f"the data changed ({', '.join(counts) or 'as many images, other names or sizes'})"
