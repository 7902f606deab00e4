"""One trainer and one baseline for all regression tests, and what the environment variable PLANT plants in them."""

import os

import pytest


@pytest.fixture(scope="session", autouse=True)
def planted():
    """Make the engine slower on purpose where PLANT says so (see plants.py); nothing otherwise."""
    name = os.environ.get("PLANT")
    with pytest.MonkeyPatch.context() as patch:
        if name:
            from importlib.util import module_from_spec, spec_from_file_location
            from pathlib import Path

            spec = spec_from_file_location("plants", Path(__file__).with_name("plants.py"))
            plants = module_from_spec(spec)
            spec.loader.exec_module(plants)
            plants.PLANTS[name][0](patch)
        yield


@pytest.fixture(scope="session")
def baseline():
    """This machine's; a test skips where there is none."""
    from engine.bench.regress import NoBaseline, read_baseline

    try:
        return read_baseline()
    except NoBaseline as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def trainer(planted, baseline):
    """The trainer that is watched."""
    from engine.bench.watched import watched_trainer

    with watched_trainer() as ready:
        yield ready


@pytest.fixture
def another_trainer(planted):
    """A function that builds one anew, in other memory."""
    from contextlib import ExitStack

    from engine.bench.watched import watched_trainer

    with ExitStack() as stack:
        yield lambda: stack.enter_context(watched_trainer())


@pytest.fixture(scope="session")
def counts(trainer):
    """What one of its steps, and one of the loader's batches, counts."""
    from engine.bench.watched import count_loader, count_step

    return count_step(trainer) | count_loader()
