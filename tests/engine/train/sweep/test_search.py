"""A sweep's bookkeeping with made-up runs: nothing is run twice, a half trial goes on, the worse ones are stopped."""

import math

import pytest

from engine.config import ConfigError, parse
from engine.runs.door import CannotWrite
from engine.train.sweep import search as module
from engine.train.sweep.command import SweepConfig, run_sweep
from engine.train.sweep.search import spread
from engine.train.sweep.space import Range
from engine.train.sweep.trial import TrialFailed, claim

pytest.importorskip("optuna")
SPACE = {"optim.lr": Range("log", (1e-4, 1.0), 1), "optim.optimizer": Range("choice", ("sgd", "adamw"), 2)}


class MadeRuns:
    """Stands in for run_trial: best at a rate of 0.01, slowly learning; raises what it is told at a call."""

    def __init__(self, raises: dict[int, BaseException] | None = None) -> None:
        self.raises, self.calls, self.epochs = raises or {}, [], {}

    def __call__(self, config, folder, stop=lambda seen: False):
        self.calls.append((folder.name, config.optim.lr, config.optim.optimizer, config.data.fold))
        if error := self.raises.pop(len(self.calls), None):
            raise error
        best, seen = 0.9 - 0.1 * abs(math.log10(config.optim.lr / 0.01)), []
        for epoch in range(config.optim.epochs):
            seen.append(best * (1 - 0.5 ** (epoch + 1)) + 0.001 * config.data.fold)
            if stop(seen):
                break
        self.epochs[folder.name] = len(seen)
        return seen


@pytest.fixture
def sweep(tmp_path, monkeypatch, capsys):
    """sweep(runs, trials=…, folds=…, space=…): (exit code, what was printed)."""

    def go(runs, trials: int = 5, folds: int = 0, space=SPACE, flags=()):
        monkeypatch.setattr(module, "run_trial", runs)
        base = parse(["--arch", "resnet18", "--epochs", "9", *flags])
        code = run_sweep(SweepConfig(space, base, tmp_path / "sweep", trials, folds))
        return code, capsys.readouterr().out

    return go


def test_trials_are_drawn_stopped_early_and_reported(sweep, tmp_path):
    runs = MadeRuns()
    code, said = sweep(runs)
    assert code == 0 and len(runs.calls) == 5
    assert "stopped early" in said and "finished" in said
    assert min(runs.epochs.values()) < 9 == max(runs.epochs.values())
    assert "the best is trial" in said
    assert "stopped early" in (tmp_path / "sweep" / "sweep.html").read_text()


def test_a_sweep_that_was_stopped_goes_on_as_if_it_had_not_been(sweep, tmp_path):
    whole = MadeRuns()
    sweep(whole, trials=4)
    for path in (tmp_path / "sweep").iterdir():
        path.unlink()
    first, second = MadeRuns({3: KeyboardInterrupt()}), MadeRuns()
    code, said = sweep(first, trials=4)
    assert code == 130 and "goes on" in said
    code, said = sweep(second, trials=4)
    assert code == 0 and "trial 3/4 goes on" in said
    assert first.calls[:2] + second.calls == whole.calls, "none twice, the same draws"
    assert first.calls[2] == second.calls[0], "the half one again"


def test_a_finished_sweep_runs_nothing_and_can_be_made_longer(sweep):
    sweep(MadeRuns(), trials=2)
    again, longer = MadeRuns(), MadeRuns()
    assert sweep(again, trials=2)[0] == 0 and again.calls == []
    sweep(longer, trials=3)
    assert [name for name, *_ in longer.calls] == ["trial-002"]


def test_a_run_that_fails_is_said_and_the_others_go_on(sweep):
    runs = MadeRuns({2: TrialFailed("exit code 1: not finite")})
    code, said = sweep(runs, trials=3)
    assert code == 0 and len(runs.calls) == 3
    assert "  failed: exit code 1: not finite" in said and "failed: exit co…" in said
    assert max(map(len, said.splitlines()[-6:-2])) <= 80


def test_no_finished_trial_is_exit_code_1(sweep):
    assert sweep(MadeRuns({1: TrialFailed("x")}), trials=1)[0] == 1


def test_values_that_do_not_go_together_fail_their_trial(sweep):
    space = SPACE | {"optim.min_lr": Range("log", (1e-3, 0.5), 3)}
    code, said = sweep(MadeRuns(), trials=5, space=space)
    assert code == 0 and "--optim.min-lr must be in" in said


def test_folds_alone_are_one_trial_with_a_mean_and_a_deviation(sweep):
    runs = MadeRuns()
    code, said = sweep(runs, trials=1, folds=5, space={})
    assert code == 0
    assert [(name, fold) for name, _, _, fold in runs.calls] == [(f"fold-{fold}", fold) for fold in range(5)]
    assert f"± {100 * 0.001 * math.sqrt(2.5):.2f} % over 5 folds" in said


def test_a_cross_validation_that_was_stopped_goes_on(sweep):
    sweep(MadeRuns({3: KeyboardInterrupt()}), trials=1, folds=5, space={})
    runs = MadeRuns()
    assert sweep(runs, trials=1, folds=5, space={})[0] == 0
    assert [fold for *_, fold in runs.calls] == [0, 1, 2, 3, 4], "run_trial reads those that are finished"


def test_another_sweeps_folder_is_refused(sweep):
    sweep(MadeRuns(), trials=1)
    with pytest.raises(ConfigError, match="holds another sweep \\(other base\\)"):
        sweep(MadeRuns(), trials=2, flags=["--batch-size", "64"])
    with pytest.raises(ConfigError, match="other ranges"):
        sweep(MadeRuns(), trials=2, space={"optim.lr": SPACE["optim.lr"]})
    with pytest.raises(ConfigError, match="other folds"):
        sweep(MadeRuns(), trials=2, folds=3)


@pytest.mark.parametrize("harm", ["garbage", "cut", "folder"])
def test_a_damaged_database_is_said_and_can_be_deleted(sweep, tmp_path, harm):
    runs = MadeRuns()
    sweep(runs, trials=2)
    path = tmp_path / "sweep" / module.DATABASE
    whole = path.read_bytes()
    path.unlink()
    if harm == "folder":
        path.mkdir()
    else:
        path.write_bytes(b"x" * 5000 if harm == "garbage" else whole[:20_000])
    with pytest.raises(ConfigError, match=r"sweep.db cannot be read .*delete it to begin anew"):
        sweep(MadeRuns(), trials=3)
    path.rmdir() if harm == "folder" else path.unlink()
    again = MadeRuns()
    assert sweep(again, trials=2)[0] == 0 and again.calls == runs.calls


def test_a_full_disk_is_said(sweep, monkeypatch):
    import sqlite3

    from sqlalchemy.engine.default import DefaultDialect

    real = DefaultDialect.do_execute

    def full(self, cursor, statement, *more):
        if statement.startswith("INSERT INTO trials"):
            raise sqlite3.OperationalError("database or disk is full")
        return real(self, cursor, statement, *more)

    monkeypatch.setattr(DefaultDialect, "do_execute", full)
    with pytest.raises(CannotWrite, match=r"sweep.db cannot be written: database or disk is full; .*goes on"):
        sweep(MadeRuns())


@pytest.mark.parametrize(("name", "content"), [("sweep.json", "[1]"), ("sweep.json", None), (".sweep.lock", None)])
def test_odd_files_in_its_folder_are_refused_by_name(sweep, tmp_path, name, content):
    path = tmp_path / "sweep" / name
    path.parent.mkdir()
    path.mkdir() if content is None else path.write_text(content)
    with pytest.raises(ConfigError, match=name):
        sweep(MadeRuns())


def test_two_sweeps_in_one_folder_are_refused(sweep, tmp_path):
    (tmp_path / "sweep").mkdir()
    claim(tmp_path / "sweep")
    with pytest.raises(ConfigError, match="another sweep is at work"):
        sweep(MadeRuns())


def test_mean_and_deviation_in_words():
    assert spread([0.5]) == "50.00 %"
    assert spread([0.5, 0.6]) == "55.00 ± 7.07 % over 2 folds"
