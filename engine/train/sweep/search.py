"""The trials of a sweep, one after another: drawn by TPE, stopped early by successive halving, never run twice.

Bergstra et al. 2011 (NeurIPS, "Algorithms for hyper-parameter optimization") for what is tried next; Li et al. 2018
(arXiv:1810.05934, ASHA) for what is stopped: after 1, 3, 9 … epochs only the best third goes on. Both are optuna's,
with its SQLite file in the sweep's folder. Each draw is seeded by its trial's number, so a sweep that was killed goes
on as if it had not been.
"""

from __future__ import annotations

import json
import logging
import statistics
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine.config import ConfigError, RunConfig, require, to_yaml
from engine.runs.door import CannotWrite, reason, state_of
from engine.train.sweep.space import Range, with_fields
from engine.train.sweep.trial import TrialFailed, run_trial, write_result

STARTUP = 8
"""Trials that are drawn at random before TPE has seen enough."""
REDUCTION = 3
DATABASE, ABOUT = "sweep.db", "sweep.json"


def remember(folder: Path, space: Mapping[str, Range], base: RunConfig, folds: int) -> None:
    """Write what the sweep in `folder` is, or compare it. Raises ConfigError for another sweep's folder."""
    about = {
        "ranges": {field: {span.kind: list(span.values)} for field, span in space.items()},
        "folds": folds,
        "base": [line for line in to_yaml(base).splitlines() if not line.lstrip().startswith("output:")],
    }
    path = folder / ABOUT
    if path.exists():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            changed = [name for name in about if before.get(name) != about[name]]
        except (ValueError, AttributeError, OSError, RecursionError):
            raise ConfigError(f"--output {folder}: {ABOUT} is not as a sweep wrote it; give another folder") from None
        require(
            not changed,
            f"--output {folder} holds another sweep (other {', '.join(changed)}); give the same ranges and flags to go "
            "on with it, or another folder",
        )
        return
    require(not (folder / "config.yaml").exists(), f"--output {folder} holds a run; give another folder")
    write_result(path, about)


@contextmanager
def database_in_words(folder: Path) -> Iterator[None]:
    """Inside, what the database cannot do is raised as CannotWrite or ConfigError."""
    import optuna
    import sqlalchemy

    path = folder / DATABASE
    try:
        yield
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        below = error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) else error
        why = getattr(below, "orig", None) or below or error
        cause = state_of(path)
        if cause is not None or "full" in str(why) or "readonly" in str(why):
            what = reason(path, cause) if cause is not None else why
            raise CannotWrite(0, f"{path} cannot be written: {what}; mend that, and the same command goes on") from None
        raise ConfigError(
            f"--output {folder}: {DATABASE} cannot be read ({why}); delete it to begin anew: runs that are finished "
            "there are not run again"
        ) from None


def open_study(folder: Path) -> Any:
    """The optuna study in `folder`, a new one or that of the sweep that goes on."""
    import optuna

    optuna.logging.set_verbosity(logging.WARNING)
    return optuna.create_study(
        study_name="sweep",
        storage=f"sqlite:///{(folder / DATABASE).resolve()}",
        direction="maximize",
        load_if_exists=True,
        pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=REDUCTION),
    )


def search(study: Any, space: Mapping[str, Range], base: RunConfig, folder: Path, trials: int, folds: int) -> None:
    """Run trials until there are `trials`, a half one first; each ends complete, stopped early (pruned) or failed.

    Raises KeyboardInterrupt, after the run at work has saved; its trial goes on next time.
    """
    import optuna

    while True:
        half = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))
        number = half[0].number if half else len(study.get_trials(deepcopy=False))
        if not half and number >= trials:
            return
        study.sampler = optuna.samplers.TPESampler(seed=base.seed + number, n_startup_trials=STARTUP)
        trial = optuna.trial.Trial(study, half[0]._trial_id) if half else study.ask()
        values = {field: span.drawn(trial, field) for field, span in space.items()}
        print(f"trial {number + 1}/{trials}{' goes on' if half else ''}: {in_words(values)}", flush=True)
        try:
            config = with_fields(base, values | {"data.folds": folds})
            scores = run_folds(trial, config, folder / f"trial-{number:03d}", folds)
        except (ConfigError, TrialFailed) as error:
            trial.set_user_attr("reason", str(error))
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            print(f"  failed: {error}", flush=True)
            continue
        if scores is None:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            print("  stopped early", flush=True)
            continue
        trial.set_user_attr("scores", scores)
        study.tell(trial, statistics.fmean(scores))
        print(f"  {spread(scores)}", flush=True)


def run_folds(trial: Any, config: RunConfig, folder: Path, folds: int) -> list[float] | None:
    """Best val accuracy of each fold's run, or of the one run without folds; None where it was stopped early.

    Without folds a trial is judged after each epoch, with folds after each fold, by the mean so far.
    """
    if not folds:
        worse = False

        def stop(seen: list[float]) -> bool:
            nonlocal worse
            worse = len(seen) < config.optim.epochs and _judged(trial, len(seen), max(seen))
            return worse

        seen = run_trial(config, folder, stop)
        return None if worse else [max(seen)]  # a run may end before its epochs by itself: --stop.patience
    scores: list[float] = []
    for fold in range(folds):
        scores.append(max(run_trial(with_fields(config, {"data.fold": fold}), folder / f"fold-{fold}")))
        if len(scores) < folds and _judged(trial, len(scores), statistics.fmean(scores)):
            return None
    return scores


def _judged(trial: Any, step: int, value: float) -> bool:
    """Report `value` after `step`, once; True where the trial is to end."""
    if step not in trial.study._storage.get_trial(trial._trial_id).intermediate_values:
        trial.report(value, step)
    return trial.should_prune()


def in_words(values: Mapping[str, Any]) -> str:
    """`optim.lr 0.00123, optim.optimizer sgd`."""
    shown = {field: f"{value:.4g}" if isinstance(value, float) else value for field, value in values.items()}
    return ", ".join(f"{field} {value}" for field, value in shown.items()) or "as described"


def spread(scores: list[float]) -> str:
    """`97.21 %`, or of several `97.21 ± 0.34 %`: mean and standard deviation."""
    mean = 100 * statistics.fmean(scores)
    if len(scores) == 1:
        return f"{mean:.2f} %"
    return f"{mean:.2f} ± {100 * statistics.stdev(scores):.2f} % over {len(scores)} folds"
