"""Puts the teacher that a run names into its steps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from engine.config import RunConfig
from engine.data.fingerprint import Fingerprint
from engine.data.preprocessing import Preprocessing
from engine.recovery.same_run import run_identity
from engine.runs.cache import cache_folder
from engine.step.distill.kept_logits import AUTO_BYTES, KeptLogits, LogitsOf
from engine.step.distill.teacher import Teacher, digest
from engine.step.loss import Distillation
from engine.step.ranks.shares import largest_share
from engine.step.wrap import AUTOCAST_DTYPES


def teacher_of(config: RunConfig, classes: list[str]) -> Teacher | None:
    """The teacher that `config` names, None where it names none. Raises ConfigError, also for other classes."""
    if config.distill.teacher is None:
        return None
    teacher = Teacher.named(config.distill.teacher)
    teacher.refuse_other(classes)
    return teacher


def take_lessons(trainer: Any, teacher: Teacher | None, data: Fingerprint) -> str:
    """Let `trainer`'s steps learn from it; returns what that is in words, empty where there is none."""
    if teacher is None:
        return ""
    config, step = trainer.config, trainer.step
    asked = config.distill
    step.terms = replace(step.terms, distillation=Distillation(asked.mode, asked.temperature, asked.weight))
    ours, classes = Preprocessing.named_by(config.data), trainer.num_classes
    accelerator, plan = trainer.accelerator, trainer.plan
    compute = LogitsOf(
        lambda: teacher.load(classes, ours),
        accelerator.device,
        AUTOCAST_DTYPES[plan.precision],
        lambda: step.plan.micro_batch_size,
    )
    kept = _kept(trainer, teacher, data, compute)
    step.teacher = kept or compute
    how = f"temperature {asked.temperature:g}" if asked.mode == "logits" else "its guesses as labels"
    where = f"; logits kept in {kept.folder}" if kept else ""
    return f"teacher {teacher.name}: {how}, weight {asked.weight:g}{where}"


def _kept(trainer: Any, teacher: Teacher, data: Fingerprint, compute: LogitsOf) -> KeptLogits | None:
    """Its logits through the cache folder, where they are to be kept."""
    config, plan, accelerator = trainer.config, trainer.plan, trainer.accelerator
    share = largest_share(plan.global_batch_size, plan.ranks)
    steps, classes = trainer.steps_per_epoch, trainer.num_classes
    size = 4 * config.optim.epochs * steps * plan.global_batch_size * classes
    if config.distill.cache == "off" or (config.distill.cache == "auto" and size > AUTO_BYTES):
        return None
    named = run_identity(config)
    key = digest(
        {name: value for name, value in named.items() if name.startswith(("data.", "augment."))}
        | {
            "teacher": teacher.checksum,
            "pictures": data.digest,
            "seed": config.seed,
            "epochs": config.optim.epochs,
            "decoded": config.data.cache,
            "batch": (plan.global_batch_size, plan.micro_batch_size, plan.ranks),
            "arithmetic": (plan.precision, plan.device_name, torch.__version__, torch.get_num_threads()),
            "backend": getattr(trainer.train_loader, "backend", ""),
        }
    )
    folder = cache_folder() / "teachers" / key
    rank = accelerator.process_index
    return KeptLogits(compute, folder, trainer.progress, steps, share, classes, rank)
