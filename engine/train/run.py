"""A training run from its description to its report: what `launch/train.py` does."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from textwrap import indent
from typing import TYPE_CHECKING, Literal

from engine.config import ConfigError, ParallelConfig, RankError, RunConfig, changed_yaml, find_run, parse
from engine.data.opened import open_data
from engine.data.sources.source import DataError, Source
from engine.recovery.interrupt import Interrupt
from engine.recovery.relaunch import Relaunch
from engine.recovery.restart import after_restart
from engine.step.device_memory.allocator_settings import choose_expandable
from engine.step.launcher import launched_ranks, refuse_foreign, refuse_odd_ranks
from engine.step.ranks.rounds import agree_on_round

if TYPE_CHECKING:
    from engine.train.session import Session

EXIT_USAGE = 2


def say(text: str) -> None:
    """Print on the first rank only, at once."""
    if first_rank():
        print(text, flush=True)


def first_rank() -> bool:
    """Whether this process is the one that talks: the launcher's rank 0, or alone."""
    return os.environ.get("RANK", "0") in ("0", "") or not os.environ["RANK"].isdecimal()


def fail(error: Exception, code: int = EXIT_USAGE, one_rank: bool = False) -> int:
    """Print an error that the person can act on, once where all ranks meet it; returns the exit code."""
    if one_rank or first_rank():
        print(f"error: {error}", file=sys.stderr, flush=True)
    return code


def described(arguments: Sequence[str] | None = None) -> RunConfig:
    """The run of the command line. Raises ConfigError, for several ranks also where one alone would print its usage."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return parse(arguments)
    said = io.StringIO()
    try:
        with redirect_stdout(said), redirect_stderr(said):
            return parse(arguments)
    except SystemExit as ended:
        if not ended.code:
            say(said.getvalue())
            raise
        raise ConfigError(said.getvalue().strip()) from None


def refuse(error: Exception, counted: bool = False) -> int:
    """Tell an error that was met before the ranks did, once for all of them; returns the exit code of each.

    The others may not have met it: a file, or images, that one machine lacks.

    counted  the ranks have agreed which start this is
    """
    try:
        refuse_odd_ranks()
        if launched_ranks() == 1:
            return fail(error)
        if not counted:
            agree_on_round(ParallelConfig().timeout)
        from engine.train.together.roll_call import tell_all  # torch loads here

        tell_all(error)
    except RankError as alone:
        return fail(ConfigError(f"{error} (and {alone})"), one_rank=True)
    except ConfigError as told:
        return fail(told)
    return fail(error)


class _ToStandardOutput(logging.StreamHandler):
    """Writes to what standard output is at that moment: notebooks and tests put another in its place."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stdout
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """What cannot be printed is no fault of the logger, of which it would print a traceback."""
        raise


def show_notices() -> None:
    """Let the first rank's notices (logger `hcr`) reach the person, without dates or module names."""
    logger = logging.getLogger("hcr")
    if not logger.handlers and first_rank():
        handler = _ToStandardOutput()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)


def train(config: RunConfig, command: Sequence[str] = (), work: Callable[[Session], int] | None = None) -> int:
    """Run the training that `config` describes; returns the exit code.

    command  how this process was started (sys.orig_argv), to start it again where memory runs out for good; none: the
             run ends then
    work     what is done with the session in place of training

    0 finished, 1 the loss diverged or memory ran out for good, 2 the description or the data cannot be meant, 128 +
    signal when stopped.
    """
    show_notices()
    try:
        refuse_odd_ranks()
    except ConfigError as error:
        return fail(error, one_rank=not os.environ.get("LOCAL_RANK", "0").strip("0"))
    relaunch = Relaunch(command)
    choose_expandable()
    try:
        agree_on_round(config.parallel.timeout)
    except RankError as error:
        return fail(error, one_rank=True)
    try:
        refuse_foreign()
        config, source = choose_data(after_restart(config))
    except (ConfigError, DataError) as error:
        return refuse(error, counted=True)
    if config.recipe is not None and config.resume is None:
        say(f"recipe {config.recipe}, and what was given over it:\n\n{indent(changed_yaml(config), '  ')}")

    from engine.recovery.rescue import before_first_step  # torch loads here: a mistake above is told at once
    from engine.step.device_memory.out_of_memory import out_of_memory
    from engine.train.session import EXIT_MEMORY, Session
    from engine.train.together.roll_call import attend

    interrupt = Interrupt(announce=first_rank())
    with relaunch:
        try:
            # a stop signal ends this at once: there is nothing to save yet, and a rank that waits for others in native
            # code would not come to a handler of ours
            session = Session(config, source, interrupt, relaunch, attend(config, source))
        except RankError as error:
            return fail(error, one_rank=True)
        except (ConfigError, DataError) as error:
            return fail(error)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            return fail(before_first_step(error), EXIT_MEMORY, one_rank=True)
        try:
            with interrupt:
                return session.run() if work is None else work(session)
        except ConfigError as error:
            return fail(error)
        except DataError as error:  # an image that one rank read
            return fail(error, one_rank=True)
        finally:
            session.close()


def choose_data(config: RunConfig) -> tuple[RunConfig, Source]:
    """The config with its data source named, and that source opened.

    Raises DataError for data that is not there, ConfigError for a run to resume that is not.
    """
    data = config.data
    if data.name == "auto":
        name: Literal["folder", "digits"] = "folder" if data.root is not None else "digits"
        if name == "digits":
            say(
                "No data named: training on scikit-learn's handwritten digits. "
                "Your own: --data.root FOLDER with a folder of pictures a class, or --data.name mnist|cifar10."
            )
        config = replace(config, data=replace(data, name=name))
    run = None if config.resume is None else find_run(config.resume, str(config.log.output or "") or None)
    return config, open_data(config.data, run=run)
