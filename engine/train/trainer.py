"""The training loop: batches in, steps, log points, checkpoints, an evaluation an epoch.

The host waits for the device at log points only (every `log.every` steps): losses, hits and the first bad step are
summed on the device until then.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path

from accelerate import Accelerator
from torch import Tensor

from engine.config import RunConfig
from engine.data.fingerprint import Fingerprint
from engine.data.preprocessing import Preprocessing
from engine.data.sources.source import DataError
from engine.monitor.peak_memory import PeakMemory
from engine.monitor.progress import EpochBar, memory_in_use
from engine.monitor.step_profile import StepProfile, Unprofiled
from engine.recovery.checkpoint import Checkpointer, read_state
from engine.recovery.interrupt import Interrupt
from engine.recovery.rescue import Rescue
from engine.recovery.same_run import refuse_other, run_identity
from engine.recovery.stop_together import StopTogether
from engine.runs.runfolder import RunFolder
from engine.runs.weights_facts import WeightsFacts
from engine.step.ema import WeightAverage
from engine.step.micro_batches import is_whole
from engine.step.network import network_options
from engine.step.optimizer_step import OptimizerStep
from engine.step.plan import Plan
from engine.step.standing import Progress
from engine.step.wrap import bare_module, eager_for_odd_shapes, share_buffers
from engine.train.data.verdict import Verdict
from engine.train.ending import Ending
from engine.train.epoch_line import epoch_line
from engine.train.evaluate import Evaluation, evaluate, refuse_lost, refuse_none, told
from engine.train.log_point import LogPoint
from engine.train.schedule_free import AveragedPoint
from engine.train.together.weights_file import whole_weights, write_weights

logger = logging.getLogger("hcr")


class Diverged(RuntimeError):
    """The loss is not a number; the message has the step, learning rate, loss scale and last good checkpoint."""


class Trainer:
    """Runs `config` with a wrapped model and optimizer over two loaders (engine.data).

    `fit` returns normally at the end or after a stop signal (see `interrupt.received`), and raises Diverged when the
    loss is not finite.
    """

    def __init__(
        self,
        config: RunConfig,
        plan: Plan,
        accelerator: Accelerator,
        model,
        optimizer,
        train_loader,
        val_loader,
        classes: list[str],
        folder: RunFolder,
        interrupt: Interrupt,
        ladder: tuple[Plan, ...] = (),
        data: Fingerprint | None = None,
    ) -> None:
        self.config, self.accelerator = config, accelerator
        self.train_loader, self.val_loader, self.num_classes = train_loader, val_loader, len(classes)
        self.folder, self.interrupt = folder, interrupt
        self.average = WeightAverage(bare_module(model), config.optim.ema) if config.optim.ema else None
        self.point = AveragedPoint.of(self)
        self.checkpointer = Checkpointer(
            accelerator, model, optimizer, folder, config.log.keep_checkpoints, self.average or self.point
        )
        self.data = data or Fingerprint(classes, len(train_loader), len(val_loader), "")
        preprocessing = Preprocessing.named_by(config.data)
        self.facts = WeightsFacts(
            config.model.arch,
            classes,
            network_options(config.model, config.data.channels),
            config.data.side,
            data=self.data.as_dict(),
            run=run_identity(config),
            preprocessing=preprocessing.to_json() if preprocessing else "",
        )
        """What model.safetensors says of itself."""
        self.progress = Progress()
        self.steps_per_epoch: int = train_loader.steps_per_epoch
        self.step = OptimizerStep(
            config.optim, plan, accelerator, model, optimizer, self.progress, self.steps_per_epoch
        )
        self.step.span = lambda part: self.profile.span(part)
        if self.step.graph is not None:
            self.step.graph.told = self._recorded
        self.ending = Ending(config, self.progress, self.steps_per_epoch, val_loader.steps_per_epoch)
        self.rescue = Rescue(self.step, self.checkpointer, folder, ladder)
        self.main = accelerator.is_main_process
        self.peaks = PeakMemory(accelerator.device)
        self.verdict = Verdict(config.data, accelerator.num_processes, accelerator.device)
        self.profile: StepProfile | Unprofiled = Unprofiled()
        self.doing: Callable[[str], None] = lambda what: None
        """Told what this rank is at, where others wait for it."""
        self._stopping = False
        self._together = StopTogether(accelerator)
        self._lost = self._gone = False
        self._started = time.perf_counter()
        self._started_step = 0

    @property
    def plan(self) -> Plan:
        """What steps are taken by now."""
        return self.step.plan

    @property
    def model(self):
        """The wrapped network of now: a rescue may wrap it anew."""
        return self.step.model

    @property
    def optimizer(self):
        """As accelerate wrapped it."""
        return self.step.optimizer

    def resume(self, checkpoint: Path) -> None:
        """Go on exactly where `checkpoint` was written, in mid-epoch too.

        Raises ConfigError for a checkpoint that cannot be read, of another run or of other data.
        """
        state = read_state(checkpoint / "trainer.pt")
        if change := refuse_other(state, self.config, self.data, self.steps_per_epoch, checkpoint):
            logger.info("note: %s since %s was written", change, checkpoint)
        self.progress.restore(self.checkpointer.restore(checkpoint, state))
        self._started_step = self.progress.step
        self.ending.resumed()

    def fit(self) -> None:
        """Train the epochs that are left."""
        if not self.checkpointer.sharded:
            self.rescue.allocate_state()
        while self.progress.epoch < self.config.optim.epochs and not self._stopping and not self.ending.reason:
            self._train_epoch()
            if self.progress.step_in_epoch >= self.steps_per_epoch or self.ending.mid_epoch:
                self._finish_epoch()
        self.checkpointer.wait()
        self._together.drain()
        if self.ending.reason and self.main:
            self.folder.append("event", **self.ending.row())
            print(self.ending.told(), flush=True)

    @property
    def over(self) -> bool:
        """Whether there is nothing left to train."""
        return self.progress.epoch >= self.config.optim.epochs or self.ending.reason is not None

    # --- one epoch ---------------------------------------------------------------------------------------------

    def _train_epoch(self) -> None:
        """The steps of one epoch that are left, until its end or a stop."""
        progress, epoch, epochs = self.progress, self.progress.epoch, self.config.optim.epochs
        images = len(self.train_loader)
        done = min(images, progress.step_in_epoch * self.config.optim.batch_size)
        bar = EpochBar(f"epoch {epoch + 1:>{len(str(epochs))}}/{epochs}", images, done, quiet=not self.main)
        self.model.train()
        self.step.begin_epoch()
        point = LogPoint(time.perf_counter(), progress.step)
        self.peaks.restart()
        try:
            for batch, waited in self._batches(epoch, progress.step_in_epoch):
                if batch.readable or not self._alone:  # several ranks step together, whoever has images
                    with self._following():
                        self.rescue.take(batch)
                self._lost, self._gone = batch.lost, self._gone or batch.gone
                self.profile.step_done(batch.global_count)
                progress.step += 1
                progress.step_in_epoch += 1
                point.images += batch.global_count
                point.waited += waited
                bar.advance(batch.global_count)
                last = self.ending.is_last()
                periodic = self._due(self.config.log.checkpoint_steps)
                first = progress.step == self._started_step + 1
                wanted = self._together.after_step(self.interrupt.received is not None) or (self._alone and self._lost)
                if last or periodic or first or wanted or self._due(self.config.log.every):
                    point = self._log(point, bar)
                    self.peaks.interval(counts=not first and is_whole(batch, self.plan))
                    if not last and (self._stopping or periodic):
                        self.save()
                        point.time = time.perf_counter()
                    if self._stopping or self.ending.mid_epoch:
                        return
        finally:
            bar.close()

    def _following(self) -> AbstractContextManager:
        """Inside, the average takes in the step that is made."""
        return self.average.follow(self.optimizer, self.accelerator.scaler) if self.average else nullcontext()

    def _due(self, every: int) -> bool:
        return every > 0 and self.progress.step % every == 0

    @property
    def _alone(self) -> bool:
        """Whether this is a single process."""
        return self.accelerator.num_processes == 1

    def _batches(self, epoch: int, start: int) -> Iterator[tuple]:
        """(batch, seconds that the host waited for it) for the epoch's remaining steps."""
        if start >= self.steps_per_epoch:
            return
        batches = self.train_loader.epoch(epoch, start)
        try:
            while True:
                asked = time.perf_counter()
                with self.profile.span("data wait"):
                    self.doing("waiting for images")
                    batch = next(batches, None)
                    self.doing(f"step {self.progress.step + 1}")
                if batch is None:
                    return
                yield batch, time.perf_counter() - asked
        finally:
            batches.close()

    def _recorded(self, row: dict) -> None:
        """A step was recorded as a CUDA graph, or could not be."""
        if not self.main:
            return
        self.folder.append("event", step=self.progress.step + 1, **row)
        if "reason" in row:
            print(f"note: the step cannot be recorded as a CUDA graph, it is launched: {row['reason']}", flush=True)

    # --- log points --------------------------------------------------------------------------------------------

    def _log(self, point: LogPoint, bar: EpochBar) -> LogPoint:
        """Wait for the device, agree with the other ranks, write a row; returns the new log point."""
        self.step.meter[4] = float(self.interrupt.received is not None)
        self.step.meter[5] = 2.0 if self._gone else float(self._lost)
        steps = self.progress.step - point.step
        first = point.step == self._started_step
        self.step.meter[6] = self.ending.estimate(time.perf_counter() - point.time, steps, first)
        meters = self.step.meter
        if self.accelerator.num_processes > 1:
            meters = self.accelerator.gather(self.step.meter[None])
        rows = meters.reshape(-1, len(self.step.meter)).cpu()
        now = time.perf_counter()
        sums = rows[:, :3].sum(dim=0).tolist()
        self._stopping = bool(rows[:, 4].max() > 0)
        self.ending.settle(round(rows[0, 6].item()))
        if rows[:, 5].min() > 0 or rows[:, 5].max() > 1:  # no rank's last batch has an image, or one's disk is gone
            raise DataError(f"no image of a whole batch could be read{told(self.train_loader.bad_images)}")
        progress = self.progress
        if math.isfinite(first_bad := rows[:, 3].min().item()):
            raise Diverged(self._diverged(int(first_bad)))
        loss, hits, images = (new - old for new, old in zip(sums, point.totals, strict=True))
        progress.loss_sum += loss
        progress.hits += hits
        progress.images += images
        progress.seconds += now - point.time
        seconds = max(1e-9, now - point.time)
        self.verdict.pace.add(point.images, seconds, point.waited)
        speed, seen = point.images / seconds, max(1.0, images)
        memory = memory_in_use(self.accelerator.device)
        remaining = self.config.optim.epochs * self.steps_per_epoch - progress.in_steps_of(self.steps_per_epoch)
        left = (now - self._started) / (progress.step - self._started_step) * remaining
        bar.report(loss=loss / seen, accuracy=hits / seen, rate=speed, memory=memory, left=left)
        if self.main:
            self.folder.append(
                "step",
                step=progress.step,
                epoch=round(progress.epoch + progress.step_in_epoch / self.steps_per_epoch, 4),
                loss=loss / seen,
                accuracy=hits / seen,
                lr=self.step.used_rate,
                images_per_second=round(speed, 2),
                memory_bytes=memory,
                data_wait_fraction=round(point.waited / seconds, 4),
            )
        return LogPoint(now, progress.step, totals=(sums[0], sums[1], sums[2]))

    def _diverged(self, step: int, what: str = "the loss") -> str:
        rate = self.step.rate(step - 1)
        scaler = self.accelerator.scaler
        scale = f"{scaler.get_scale():g}" if scaler else "none"
        good = self.checkpointer.settle() or "none yet"
        if self.main:
            self.folder.append("event", event="nan", step=step, lr=rate, scale=scale, checkpoint=str(good))
        return (
            f"{what} is not finite at step {step} (learning rate {rate:g}, loss scale {scale}); "
            f"last good checkpoint: {good}. "
            "Try a lower --lr, --optim.warmup-epochs 1, --optim.clip-norm 1, or --precision fp32."
        )

    # --- the end of an epoch -----------------------------------------------------------------------------------

    def evaluate(self, confusion: bool = False, raw: bool = False) -> Evaluation:
        """Loss and accuracy over the validation split, over all ranks; of the averaged weights where there are.

        raw  of the weights themselves all the same
        """
        self.doing("evaluation")
        model = self.model if self.checkpointer.sharded else bare_module(self.model)
        model.eval()
        if self.step.graph is not None:
            self.step.graph.make_room()
        if raw or self.average is None:  # it shares its own
            share_buffers(model.buffers())

        def forward(images: Tensor) -> Tensor:
            with eager_for_odd_shapes(self.plan.compile, len(images) != self.plan.micro_batch_size):
                return model(images)

        with nullcontext() if raw else self._averaged():
            result = evaluate(
                forward,
                refuse_lost(self.val_loader, at_end=self.checkpointer.sharded),
                self.num_classes,
                self.accelerator.device,
                self.plan.micro_batch_size,
                reduce=lambda totals: self.accelerator.reduce(totals, "sum"),
                confusion=confusion,
                ranks=self.plan.ranks if self.checkpointer.sharded else 1,
            )
        refuse_none(result, self.val_loader)
        return result

    def _averaged(self) -> AbstractContextManager:
        """Inside, the model has the weights that are evaluated and kept."""
        kept = self.average or self.point
        return kept.in_place() if kept else nullcontext()

    def _finish_epoch(self) -> None:
        """Evaluate, keep the best weights, write the row and the checkpoint."""
        progress, began = self.progress, time.perf_counter()
        if not progress.images:
            raise DataError(f"no readable image in {self.train_loader.place}{told(self.train_loader.bad_images)}")
        pace, verdict = self.verdict.of_epoch(self.train_loader, progress.epoch, self.plan)
        result = self.evaluate()
        if not math.isfinite(result.loss):
            raise Diverged(self._diverged(progress.step, "the loss on the val images"))
        by, score = self.config.log.best, result.score(self.config.log.best)
        best = progress.is_best(by, score, result.top1)
        seen = max(1.0, progress.images)
        row = {
            "epoch": progress.epoch + 1,
            "step": progress.step,
            "train_loss": progress.loss_sum / seen,
            "train_accuracy": progress.hits / seen,
            "train_images": round(progress.images),
            "val_loss": result.loss,
            "val_accuracy": result.top1,
            "val_top5": result.top5,
            "val_images": result.count,
            "balanced_accuracy": result.balanced,
            "macro_f1": result.macro_f1,
            "images_per_second": round(len(self.train_loader) / max(1e-9, progress.seconds), 2),
            "seconds": round(progress.seconds, 3),
            "lr": self.step.used_rate,
            "best": best,
            **pace,
        }
        raw = self.evaluate(raw=True) if self.config.stop.weights == "raw" else result
        if raw is not result:
            row |= {"raw_val_loss": raw.loss, "raw_val_accuracy": raw.top1}
        if best or not self.config.log.save_best:
            self._save_weights()
        self.ending.evaluated(result, raw, time.perf_counter() - began)
        progress.epoch += 1
        progress.step_in_epoch = 0
        progress.loss_sum = progress.hits = progress.images = progress.seconds = 0.0
        if self.main:
            self.folder.append("epoch", **row)
            print(
                epoch_line(row, self.config.optim.epochs, by, score), *filter(None, [verdict]), sep="\n  ", flush=True
            )
        self.save()

    def _save_weights(self) -> None:
        """Write model.safetensors; where ranks hold parts, they bring them together."""
        with self._averaged():
            tensors = whole_weights(self.accelerator, self.model, self.checkpointer.sharded)
        if self.main:
            write_weights(self.folder, tensors, self.facts, self.progress.epoch + 1)

    def save(self) -> None:
        """Write a checkpoint of this very step; all ranks call this."""
        self.doing("saving")
        self.checkpointer.save(
            self.progress.step, {"progress": asdict(self.progress), "data": self.facts.data, "run": self.facts.run}
        )
