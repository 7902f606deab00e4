"""One training session: builds what a run needs in the order in which it can go wrong, runs it, closes it."""

from __future__ import annotations

import logging
import os
import shlex
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate.utils import gather_object

from engine.config import DataConfig, RunConfig
from engine.config.pixels.image_size import px
from engine.data.backend import make_loader
from engine.data.decoded.choice import Kept, decoded_source
from engine.data.decoding_watch import DecodingWatch
from engine.data.fingerprint import fingerprint_of
from engine.data.loader import Loader
from engine.data.progressive import ProgressiveLoader
from engine.data.sources.source import Source
from engine.monitor.monitor import Monitor
from engine.monitor.progress import clock
from engine.monitor.step_profile import StepProfile
from engine.plan.told import plan_lines
from engine.recovery.interrupt import Interrupt
from engine.recovery.relaunch import Relaunch
from engine.recovery.rescue import MemoryExhausted
from engine.runs.door import CannotWrite
from engine.runs.runfolder import RunFolder
from engine.runs.wording import listed
from engine.step.device_memory.allocator_settings import CHOSEN, VARIABLES
from engine.step.device_memory.out_of_memory import first_sentences, out_of_memory
from engine.step.launcher import meet_again
from engine.step.network import build_network
from engine.step.optim import build_optimizer
from engine.step.plan import Hardware
from engine.step.ranks.deepspeed_fields import refuse_contradictions
from engine.step.ranks.fsdp import refuse_fsdp
from engine.step.ranks.meeting import Meeting
from engine.step.ranks.peers import Peers
from engine.step.single_values import refuse_single_values
from engine.step.weights.pretrained import with_preprocessing
from engine.step.wrap import AUTOCAST_DTYPES, Launch, build_accelerator, prepare_device, wrap
from engine.train.data.check import checked, told
from engine.train.decoder_crash import known_crashes
from engine.train.kept_weights import go_on, measure_test
from engine.train.loss_terms import loss_terms, run_lines
from engine.train.memory_verdict import compare_memory
from engine.train.shared_folder import choose_checkpoint, decided, describe, has_begun, open_folder, to_go_on
from engine.train.taught import take_lessons, teacher_of
from engine.train.together.planning import plan_session, refuse_larger_than_memory
from engine.train.together.roll_call import all_or_none
from engine.train.trainer import Diverged, Trainer

EXIT_DIVERGED = 1
EXIT_MEMORY = 1
EXIT_CANNOT_WRITE = 1


class Session:
    """Everything alive during one process's part of a run.

    relaunch  how to start again where memory runs out for good
    meeting   where all ranks are, already found to mean the same run; None for one process

    Raises ConfigError or DataError before any training where something cannot be meant.
    """

    def __init__(
        self,
        config: RunConfig,
        source: Source,
        interrupt: Interrupt,
        relaunch: Relaunch,
        meeting: Meeting | None = None,
    ) -> None:
        self.loaders: list = []
        self.trainer: Any = None
        self.kept = Kept(source, "off", [])
        self.watch: DecodingWatch | None = None
        self.relaunch, self.meeting = relaunch, meeting
        self.peers = Peers(meeting, config.parallel.timeout) if meeting is not None else None
        self.folder: RunFolder | None = None
        try:
            self._build(config, source, interrupt, relaunch)
        except BaseException as error:
            self._explain(error)
            self.close()
            raise

    def _build(self, config: RunConfig, source: Source, interrupt: Interrupt, relaunch: Relaunch) -> None:
        logging.getLogger("accelerate").setLevel(logging.ERROR)
        with all_or_none(self.meeting, "launch"):
            launch = Launch.detect(config.parallel.timeout)
        relaunch.watch()
        if self.peers is not None:
            self.peers.start()
        device = prepare_device(launch, config.parallel.threads)
        meet_again(device.type == "cuda", launch.exchange_timeout)
        hardware = Hardware.detect()
        with all_or_none(self.meeting, "built"):
            if launch.deepspeed is not None:
                refuse_contradictions(launch.deepspeed, config, launch.ranks)  # its sections are sections then
                config.optim.refuse_deepspeed(launch.zero_stage)
            if launch.fsdp:
                refuse_fsdp(config)
            self.asked, config = config, with_preprocessing(config, source)
            refuse_larger_than_memory(config, source, hardware, launch.ranks)
            teacher = teacher_of(config, source.classes)
            torch.manual_seed(config.seed)
            model = build_network(config, len(source.classes), source.classes, has_begun(config))
            data = fingerprint_of(source)
            kept = self.kept = decoded_source(source, config.data, config.data.eval_crop, data)
            self.source = source = kept.source
            config = replace(config, augment=config.augment.whole(), data=replace(config.data, cache=kept.choice))
        restarted = bool(relaunch.reason)
        self.planned = plan_session(config, model, source, hardware, launch, self.meeting, restarted, teacher)
        plan = self.planned.plan
        refuse_single_values(model, plan, config.data.progressive_from or config.data.side, config.data.channels)
        one_group = launch.deepspeed is not None and plan.precision == "fp16"
        optimizer = build_optimizer(model.to(device), config.optim, one_group, parts=plan.fsdp)
        self.config, self.plan, self.interrupt = config, plan, interrupt
        self.accelerator = build_accelerator(plan, launch, config.optim)
        self.main = self.accelerator.is_main_process
        self.data_lines = decided(self.accelerator, lambda: told(checked(source, data, config), config))
        folder = self.folder = open_folder(config, self.asked, model.arch, source.name, self.accelerator)
        kept.forget()  # every rank has it open by now
        loader = self._loader = partial(
            make_loader,
            source,
            global_batch=plan.global_batch_size,
            rank=launch.rank,
            world=launch.ranks,
            device=device,
            dtype=AUTOCAST_DTYPES[plan.precision],
            seed=config.seed,
        )

        def training_loader(data: DataConfig) -> Loader:
            augment = {"augment": config.augment, "epochs": config.optim.epochs}
            return loader("train", minimum_share=1, config=data, **augment)  # micro-batches fill up what they need

        growing = bool(config.data.progressive_from)
        self.train_loader: Loader | ProgressiveLoader = (
            ProgressiveLoader(training_loader, config.data, config.optim.epochs)
            if growing
            else training_loader(config.data)
        )
        self.loaders.append(self.train_loader)
        self.val_loader = loader("val", minimum_share=1, config=config.data)
        self.loaders.append(self.val_loader)
        self.watch = DecodingWatch(folder.path, launch.rank)
        crashes = known_crashes(folder.path)
        for each in self.loaders:
            each.on_bad, each.watch = self._bad_image, self.watch
            each.avoid(crashes)
        sizes = config.data.progressive_stages if growing else 1
        wrapped, optimizer = wrap(model, optimizer, plan, self.accelerator, sizes)
        torch.manual_seed(config.seed + 1 + launch.rank)  # dropout differs by rank, weights do not
        self.trainer = Trainer(
            config,
            plan,
            self.accelerator,
            wrapped,
            optimizer,
            self.train_loader,
            self.val_loader,
            source.classes,
            folder,
            interrupt,
            self.planned.ladder,
            data,
        )
        self.trainer.step.terms = loss_terms(config, self.train_loader.class_counts, device)
        self.lessons = take_lessons(self.trainer, teacher, data)
        self.resumed = choose_checkpoint(config, folder, self.accelerator, self.trainer.checkpointer)
        if self.resumed is not None:
            go_on(self.trainer, self.resumed)
        if self.main:
            describe(folder, config, self.planned, source.made)
        if self.peers is not None:
            self.trainer.doing = self.peers.is_doing
            self.peers.advice = f"Go on with --resume {folder.path}"

    def _bad_image(self, bad) -> None:
        print(f"unreadable image, left out: {bad.path} ({bad.reason})", flush=True)
        if self.main:
            self._record_bad(bad.path, bad.reason)

    def _record_bad(self, path: str, reason: str) -> None:
        self.run_folder.append("event", event="bad_image", path=path, reason=reason)

    def _all_bad(self) -> int:
        """How many images could not be read, over all ranks; the first rank writes down what the others found."""
        mine = {image.path: image.reason for loader in self.loaders for image in loader.bad_images}
        if self.accelerator.num_processes == 1:
            return len(mine)
        found = dict(gather_object(list(mine.items())))
        if self.main:
            for path in found.keys() - mine.keys():
                self._record_bad(path, found[path])
        return len(found)

    # --- running -----------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Train to the end or to a stop signal; returns the exit code.

        Raises DataError.
        """
        try:
            return self._run()
        except CannotWrite as error:
            return self._cannot_write(error)
        except RuntimeError as error:
            self._explain(error)
            raise

    def _explain(self, error: BaseException) -> None:
        """End here, in words, where an exchange failed because another rank is gone."""
        if self.peers is not None and isinstance(error, RuntimeError):
            self.peers.explain(error, over=self.trainer is not None and self.trainer.over)

    def _cannot_write(self, error: CannotWrite) -> int:
        """Say what could not be written, and what is there to go on with."""
        advice = to_go_on(self.run_folder.path, self.trainer.checkpointer.last)
        if self.main:
            print(f"error: {error}; {advice}", file=sys.stderr, flush=True)
        return EXIT_CANNOT_WRITE

    @property
    def run_folder(self) -> RunFolder:
        """The run folder, which is there once the session is built."""
        assert self.folder is not None
        return self.folder

    def _run(self) -> int:
        self._announce()
        began = time.perf_counter()
        monitor: AbstractContextManager = nullcontext()
        if self.main and self.config.log.monitor_interval:
            monitor = Monitor(
                self.run_folder.monitor, device=self.accelerator.device, interval=self.config.log.monitor_interval
            )
        try:
            with monitor:
                self._fit()
                self._measure_test()
        except MemoryExhausted as error:
            self._start_again(error)
            print(f"error: {error}", file=sys.stderr, flush=True)  # each rank: one alone may know of it
            if self.main:
                self.run_folder.append("event", event="memory_exhausted", step=self.trainer.progress.step + 1)
            return EXIT_MEMORY
        except Diverged as error:
            if self.main:
                print(f"error: {error}", file=sys.stderr, flush=True)
                self._report()
            return EXIT_DIVERGED
        stopped = not self.trainer.over
        code = (self.interrupt.exit_code or 143) if stopped else 0
        bad = self._all_bad()
        if self.main:
            self._conclude(stopped, time.perf_counter() - began, bad)
        return code

    def _start_again(self, error: MemoryExhausted) -> None:
        """Become a run under the next plan, from the last checkpoint; returns where there is none or it cannot be."""
        if not self.relaunch.possible or not error.flags:
            return
        where = self.trainer.checkpointer.settle() or "the start"
        print(
            f"out of memory at step {error.row['step']} ({error.row['reason']}): all ranks start again from {where} "
            f"with {' '.join(error.flags)}",
            flush=True,
        )
        self.relaunch.all_ranks(["--resume", str(self.run_folder.path.resolve()), *error.flags], error.row)

    def _fit(self) -> None:
        """Train; with --profile some steps of the first rank are recorded."""
        if self.config.log.profile and self.main:
            self.trainer.profile = StepProfile(self.run_folder.path / "profile", self.accelerator.device)
        try:
            self.trainer.fit()
        except RuntimeError as error:
            if isinstance(error, MemoryExhausted) or not out_of_memory(error):
                raise
            raise self.trainer.rescue.exhausted(first_sentences(error)) from None  # in an evaluation, or while saving
        finally:
            self.trainer.profile.close()

    def _measure_test(self) -> None:
        """Once, when training has ended: the weights that are kept, on the test split."""
        if self.source.test is None or not self.trainer.over:
            return
        loader = self._loader("test", minimum_share=1, config=self.config.data)
        self.loaders.append(loader)
        loader.on_bad, loader.watch = self._bad_image, self.watch
        loader.avoid(known_crashes(self.run_folder.path))
        measure_test(self.trainer, loader)

    def _announce(self) -> None:
        if not self.main:
            return
        source, plan = self.source, self.plan
        launched = time.time() - psutil.Process().create_time()
        images = f"{len(self.train_loader)} training and {len(self.val_loader)} val images"
        tested = "" if source.test is None else f", {len(source.test)} test images for the end"
        sizes = f"{images}{tested}, {len(source.classes)} classes"
        size, backend = px(self.config.data.side), self.train_loader.backend
        print(f"{self.config.model.arch} on {source.name}: {sizes}, {size}, {backend}")
        print(self.data_lines)
        print("\n".join(plan_lines(self.planned)))
        print(run_lines(self.config, source.classes, self.train_loader.class_counts, self.lessons), end="")
        if plan.device == "cuda" and os.environ.get(VARIABLES[0]) == CHOSEN:
            print(f"allocator: expandable segments; {VARIABLES[0]} chooses otherwise")
        if plan.device == "cpu" and Path("/proc/driver/nvidia/version").exists():
            print(f"note: an NVIDIA driver is here, but PyTorch {torch.__version__} finds no GPU that it can use")
        print(f"run folder {self.run_folder.path}", flush=True)
        progress = self.trainer.progress
        if self.config.resume is not None:
            where = f"from {self.resumed}" if self.resumed else "from the start: no checkpoint was written yet"
            print(f"resuming {where}, epoch {progress.epoch + 1}, step {progress.step}", flush=True)
        if self.relaunch.reason is not None:
            self.run_folder.append("event", **self.relaunch.reason)
        event = "start" if self.config.resume is None else "resume"
        self.run_folder.append(
            "event",
            event=event,
            step=progress.step,
            command=shlex.join(sys.argv),
            torch=torch.__version__,
            ranks=plan.ranks,
            device=plan.device_name,
            backend=backend,
            threads=torch.get_num_threads(),
            startup_seconds=round(launched, 2),
        )

    def _conclude(self, stopped: bool, seconds: float, bad: int) -> None:
        progress, folder = self.trainer.progress, self.run_folder
        folder.append(
            "event",
            event="interrupted" if stopped else "finished",
            step=progress.step,
            seconds=round(seconds, 2),
            unreadable_images=bad,
        )
        compare_memory(self.config.model.arch, self.trainer, folder)
        self._report()
        if stopped:
            print(f"stopped at step {progress.step}; go on with: --resume {folder.path}", flush=True)
            return
        for each in self.loaders:
            if lost := each.unreadable_classes():
                print(f"warning: no image of {listed(lost)} in {each.place} could be read")
        print(f"finished {progress.epoch} epochs, {progress.step} steps in {clock(seconds)}")
        by = "" if (best := self.config.log.best) == "accuracy" else f", the best by {best.replace('_', ' ')}"
        print(f"best val accuracy {progress.best_accuracy:.2%} (epoch {progress.best_epoch}{by})")
        if bad:
            print(f"unreadable images left out: {bad} (listed in {folder.metrics})")
        print(f"weights {folder.weights}")
        if self.config.log.plots:
            print(f"report  {folder.path / 'report.html'}")

    def _report(self) -> None:
        """Draw the plots and the page; a disk that is full by now does not turn a finished run into a failed one."""
        if not self.config.log.plots:
            return
        from engine.report.compare import write_report

        try:
            write_report(self.run_folder.path)
        except OSError as error:
            print(f"the report could not be written: {error}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Let go of loaders, DeepSpeed and the process group."""
        if self.peers is not None:
            self.peers.close()
        for part in (*self.loaders, self.kept):
            part.close()
        if self.trainer is not None:
            self.trainer.checkpointer.settle()
        if self.watch is not None:
            self.watch.close()
        if self.folder is not None:
            self.folder.close()
        if torch.distributed.is_initialized():
            self.accelerator.end_training()
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
