"""The suites of `launch/bench.py` by name, each from its options to its figures."""

from __future__ import annotations

from argparse import Namespace


def trainer(options: Namespace) -> dict:
    """The trainer's tax in fp32 and in the precision that a run here would choose."""
    from engine.bench.trainer_tax import trainer_tax
    from engine.planner import Hardware, choose_precision

    figures = {}
    chosen = choose_precision("auto", Hardware.detect())
    for precision in dict.fromkeys(["fp32", chosen]):
        result = trainer_tax(options.arch, 32, 64, precision, steps=8, rounds=options.rounds)
        figures[precision] = {"arch": options.arch, "batch_size": 32, "image_size": 64} | result.as_dict()
    return figures


def loader(options: Namespace) -> dict:
    """DALI beside a DataLoader with 2 workers at 224 px, training crops and evaluation crops."""
    from engine.bench.loader_rate import loader_rate

    return {
        split: {"image_size": 224, "batch_size": 32, "workers": 2}
        | loader_rate(options.photos, split, 224, 32, options.rounds).as_dict()
        for split in ("train", "val")
    }


def startup(options: Namespace) -> dict:
    """The wait for the first step at 64 px, and for the help text."""
    from engine.bench.startup import startup as measure

    return measure(options.arch, 64, options.rounds)


def compiled(options: Namespace) -> dict:
    """Whether torch.compile pays at 64 px."""
    from engine.bench.compile_gain import compile_gain

    return compile_gain(options.arch, 32, 64, steps=4, rounds=options.rounds)


def runs(options: Namespace) -> dict:
    """What finished runs reached; their folders are given by --runs."""
    from engine.bench.run_record import run_figures

    return {folder.name: run_figures(folder) for folder in options.runs}


SUITES = {"trainer": trainer, "loader": loader, "startup": startup, "compile": compiled, "runs": runs}
