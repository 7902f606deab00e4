"""The training engine: a run description becomes a plan, the plan wraps a model, DALI feeds it, the trainer loops.

In Python: `from engine import load; load("runs/x").predict(["a.jpg"])`, and see `__all__`; nothing is imported before
it is asked for, not even what types need.
"""

_FROM = {
    "RunConfig": ("engine.config", "RunConfig"),
    "train_run": ("engine.train.run", "train"),
    "plan_for": ("engine.plan.in_python", "plan_for"),
    "evaluate": ("engine.use.evaluation", "evaluate"),
    "load": ("engine.use.predict", "load"),
}
"""Module and name of what each public name is. `engine.train` and `engine.plan` are the rooms themselves."""

__all__ = ["RunConfig", "evaluate", "load", "plan_for", "train_run"]


def __getattr__(name: str):
    if name not in _FROM:
        raise AttributeError(f"engine has no {name}")
    from importlib import import_module

    module, attribute = _FROM[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
