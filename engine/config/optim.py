"""What is minimised, and how: the fields of the group `optim`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal

from engine.config.checks import ConfigError, require
from engine.config.flag import TopLevel
from engine.config.optimizers import OPTIMIZERS
from engine.config.stop import METRICS

SCHEDULES = (
    *("constant", "cosine", "linear", "polynomial", "exponential", "step", "multistep"),
    *("one-cycle", "triangular", "triangular2", "exp-range", "plateau"),
)
LOSSES = ("cross-entropy", "bce", "focal")


@dataclass(frozen=True)
class OptimConfig:
    """What is minimised, and how."""

    epochs: Annotated[int, TopLevel] = 10
    """Passes over the training images."""
    batch_size: Annotated[int, TopLevel] = 128
    """Images a step over all GPUs together (the global batch)."""
    lr: Annotated[float, TopLevel] = 0.001
    """Peak learning rate; with lr_base that of a batch of lr_base images."""
    lr_base: int = 0
    """Images of the batch that lr is for: another batch size scales it by lr_scale. 0 is none: lr as it is."""
    lr_scale: Literal["linear", "sqrt"] = "linear"
    """How lr grows with the batch over lr_base: with it (Goyal et al. 2017, arXiv:1706.02677), or with its root."""
    backbone_lr: float = 0.0
    """Peak learning rate of all but the last layer, for fine-tuning, scaled as lr is; 0 is that of lr."""
    layer_decay: float = 1.0
    """By what the learning rate is multiplied once a block from the logits down, as 0.75; 1 is not at all."""
    optimizer: Annotated[Literal[*OPTIMIZERS], TopLevel] = "adam"
    """How a gradient becomes a step: torch's own where it has it, else timm's; schedule-free is its authors'."""
    momentum: float = 0.9
    """Momentum of SGD, RMSprop, LARS and Muon; 0 is none."""
    nesterov: bool = True
    """The momentum of SGD, LARS and Muon looks ahead (Sutskever et al. 2013)."""
    betas: tuple[float, ...] | None = None
    """Decay of each moment, of Adam and its kin two, of Adan three; none is the library's, of Adam 0.9 and 0.999."""
    alpha: float | None = None
    """Decay of RMSprop's mean square; none is the library's, of rmsprop 0.99, of rmsprop-tf 0.9."""
    eps: float | None = None
    """What is added to the root that the step is divided by, in rmsprop-tf under the root; none is the library's."""
    weight_decay: float = 0.0
    """Weight decay of the weights; biases and normalisation parameters have none."""
    schedule: Literal[*SCHEDULES] = "constant"
    """Learning rate after the warm-up, by the step."""
    min_lr: float = 0.0
    """Where cosine, linear, polynomial and one-cycle end, where a cycle begins, and what the others do not go below."""
    cycles: int = 1
    """Times that cosine falls from the peak."""
    power: float = 1.0
    """Exponent of polynomial."""
    gamma: float = 0.1
    """Factor of step, multistep and plateau at each fall, of exponential an epoch, of exp-range a step."""
    step_epochs: float = 3.0
    """Epochs between two falls of step."""
    milestones: tuple[float, ...] = ()
    """Epochs at which multistep falls."""
    cycle_steps: tuple[int, int] = (2000, 2000)
    """Steps up and steps down of triangular, triangular2 and exp-range."""
    plateau_metric: Literal[*METRICS] | None = None
    """What plateau looks at, on the val images."""
    plateau_patience: int = 2
    """Evaluations in a row without a better one that plateau bears; it falls at the next."""
    schedule_steps: int = 0
    """Steps that the schedule is made for, warm-up included; 0 is the run's."""
    warmup_epochs: float = 0.0
    """Epochs of warm-up."""
    warmup_steps: int = 0
    """Steps of warm-up in place of epochs; 0 is warmup_epochs."""
    warmup: Literal["linear", "constant"] = "linear"
    """How the rate gets from warmup_lr to the peak: in a line, or at once behind the warm-up."""
    warmup_lr: float = 0.0
    """Learning rate at which the warm-up begins."""
    step_per_epoch: bool = False
    """The schedule moves on once an epoch and takes epochs for steps: the learning repository's mistake, for its
    figures."""
    loss: Literal[*LOSSES] = "cross-entropy"
    """What is minimised: cross-entropy, a binary cross-entropy a class (bce), or focal loss, which counts images that
    are right already less."""
    bce_threshold: float | None = None
    """bce: shares of a class in a mixed or smoothed image above this are 1, others 0; none leaves them as they are."""
    focal_gamma: float = 2.0
    """Exponent of focal (Lin et al. 2017, arXiv:1708.02002); 0 is cross-entropy."""
    label_smoothing: float = 0.0
    """Share of the target spread over all classes (Szegedy et al. 2015, arXiv:1512.00567, section 7)."""
    logit_adjust: float = 0.0
    """τ of logit adjustment for classes of unlike size, usually 1 (Menon et al. 2020, arXiv:2007.07314): τ · log of
    each class's share is added to the logits in training; 0 is none."""
    clip_norm: float = 0.0
    """Largest global gradient norm; 0 is no clipping."""
    ema: float = 0.0
    """Decay of a moving average of the weights, as 0.9999, which is what is evaluated and kept; 0 is none."""
    sam: float = 0.0
    """Radius of sharpness-aware minimisation, as 0.05 (Foret et al. 2020, arXiv:2010.01412): the gradient is taken that
    far up the slope, in a second pass a step; 0 is off."""

    def __post_init__(self) -> None:
        require(self.epochs >= 1, f"--epochs must be at least 1, not {self.epochs}")
        require(self.batch_size >= 1, f"--batch-size must be at least 1 image, not {self.batch_size}")
        require(self.lr > 0, f"--lr must be above 0, not {self.lr}")
        require(self.backbone_lr >= 0, f"--optim.backbone-lr must be 0 (that of --lr) or more, not {self.backbone_lr}")
        require(0 < self.layer_decay <= 1, f"--optim.layer-decay must be in (0, 1], not {self.layer_decay}")
        require(0 <= self.momentum < 1, f"--optim.momentum must be in [0, 1), not {self.momentum}")
        require(self.weight_decay >= 0, f"--optim.weight-decay must be 0 or more, not {self.weight_decay}")
        require(self.lr_base >= 0, f"--optim.lr-base must be 0 (lr as it is) or a batch size, not {self.lr_base}")
        self._check_optimizer()
        self._check_schedule()
        require(self.warmup_epochs >= 0, f"--optim.warmup-epochs must be 0 or more, not {self.warmup_epochs}")
        require(0 <= self.label_smoothing < 1, f"--optim.label-smoothing must be in [0, 1), not {self.label_smoothing}")
        self._check_loss()
        require(0 <= self.logit_adjust < math.inf, f"--optim.logit-adjust must be 0 or more, not {self.logit_adjust}")
        require(self.clip_norm >= 0, f"--optim.clip-norm must be 0 (off) or more, not {self.clip_norm}")
        require(0 <= self.ema < 1, f"--optim.ema must be 0 (off) or a decay between 0 and 1, not {self.ema}")
        require(0 <= self.sam < math.inf, f"--optim.sam must be 0 (off) or a radius above 0, not {self.sam}")

    def _check_optimizer(self) -> None:
        """Raise ConfigError for what the optimizer cannot take, or does not read."""
        for name in ("betas", "alpha", "eps", "nesterov"):
            given = getattr(self, name) not in (None, True)
            flag = f"--optim.{'no-' if name == 'nesterov' else ''}{name}"
            readers = [each for each, one in OPTIMIZERS.items() if name in one.reads]
            require(
                not given or self.optimizer in readers,
                f"{flag} has no effect on --optimizer {self.optimizer}; it is for {', '.join(readers)}",
            )
        chosen = OPTIMIZERS[self.optimizer]
        betas = self.betas or (0.0,) * chosen.betas
        require(
            len(betas) == chosen.betas, f"--optim.betas: {self.optimizer} has {chosen.betas} of them, not {len(betas)}"
        )
        require(0 <= min(betas) <= max(betas) < 1, f"--optim.betas must be in [0, 1) each, not {self.betas}")
        require(self.alpha is None or 0 <= self.alpha < 1, f"--optim.alpha must be in [0, 1), not {self.alpha}")
        require(self.eps is None or 0 < self.eps <= 1, f"--optim.eps must be above 0 and at most 1, not {self.eps}")
        if chosen.schedule_free:
            self._check_schedule_free()

    def _check_schedule_free(self) -> None:
        """Raise ConfigError for what a schedule-free optimizer takes the place of."""
        name = f"--optimizer {self.optimizer}"
        plain = self.schedule == "constant" and not self.step_per_epoch
        require(plain, f"{name} takes the place of a schedule; leave --optim.schedule constant, a warm-up is fine")
        require(not self.ema, f"{name} keeps an average of the weights itself; leave --optim.ema out")
        momentum = self.momentum > 0 or "momentum" not in OPTIMIZERS[self.optimizer].reads
        require(momentum, f"{name} needs an --optim.momentum above 0: it is the share of the average in a step")

    def _check_loss(self) -> None:
        """Raise ConfigError for what the loss cannot take, or does not read."""
        given = self.bce_threshold is not None
        require(not given or self.loss == "bce", "--optim.bce-threshold has no effect without --optim.loss bce")
        threshold = self.bce_threshold or 0.0
        require(0 <= threshold < 1, f"--optim.bce-threshold must be in [0, 1), not {self.bce_threshold}")
        chosen = self.focal_gamma == OptimConfig.focal_gamma or self.loss == "focal"
        require(chosen, "--optim.focal-gamma has no effect without --optim.loss focal")
        require(0 <= self.focal_gamma <= 10, f"--optim.focal-gamma must be from 0 to 10, not {self.focal_gamma}")

    def _check_schedule(self) -> None:
        """Raise ConfigError for a schedule that cannot be meant."""
        require(0 <= self.min_lr < self.peak_lr, f"--optim.min-lr must be in [0, --lr), not {self.min_lr}")
        require(self.cycles >= 1, f"--optim.cycles must be at least 1, not {self.cycles}")
        require(0 < self.power < math.inf, f"--optim.power must be above 0, not {self.power}")
        require(0 < self.gamma <= 1, f"--optim.gamma must be in (0, 1], not {self.gamma}")
        require(0 < self.step_epochs < math.inf, f"--optim.step-epochs must be above 0, not {self.step_epochs}")
        increasing = all(first < second for first, second in pairwise((0.0, *self.milestones)))
        require(increasing, f"--optim.milestones must be epochs above 0 that grow, not {self.milestones}")
        has = bool(self.milestones) == (self.schedule == "multistep")
        require(has, "--optim.milestones and --optim.schedule multistep go together")
        require(min(self.cycle_steps) >= 1, f"--optim.cycle-steps must be at least 1 each, not {self.cycle_steps}")
        has = (self.plateau_metric is not None) == (self.schedule == "plateau")
        require(has, "--optim.plateau-metric and --optim.schedule plateau go together: name what is to improve")
        patient = self.plateau_patience >= 1
        require(patient, f"--optim.plateau-patience must be at least 1 evaluation, not {self.plateau_patience}")
        require(self.schedule_steps >= 0, f"--optim.schedule-steps must be 0 or more, not {self.schedule_steps}")
        require(self.warmup_steps >= 0, f"--optim.warmup-steps must be 0 or more, not {self.warmup_steps}")
        require(0 <= self.warmup_lr <= self.peak_lr, f"--optim.warmup-lr must be in [0, --lr], not {self.warmup_lr}")
        kept = self.warmup == "linear" or self.warmup_lr > 0
        require(kept, "--optim.warmup constant holds --optim.warmup-lr: give one above 0")

    @property
    def peak_lr(self) -> float:
        """The learning rate at this batch size."""
        share = self.batch_size / self.lr_base if self.lr_base else 1.0
        return self.lr * (share if self.lr_scale == "linear" else math.sqrt(share))

    def rate_line(self) -> str:
        """How the peak comes about, in words; empty where it is lr itself."""
        if self.peak_lr == self.lr:
            return ""
        root = "√" if self.lr_scale == "sqrt" else ""
        return f"learning rate {self.lr:g} × {root}({self.batch_size} / {self.lr_base}) = {self.peak_lr:g}"

    def refuse_deepspeed(self, zero_stage: int) -> None:
        """Raise ConfigError for what no launch by DeepSpeed, or none at that ZeRO stage, can do."""
        if reason := OPTIMIZERS[self.optimizer].whole:
            raise ConfigError(
                f"--optimizer {self.optimizer} {reason}, and ZeRO-{zero_stage} gives each GPU a flat piece of all "
                "parameters: use DDP, or adamw, lion, adan, nadam, rmsprop-tf or sgd"
            )
        require(
            not (OPTIMIZERS[self.optimizer].counts_by_group and zero_stage == 3),
            f"--optimizer {self.optimizer} counts its steps once for all parameters, and ZeRO-3 takes them group by "
            "group: use ZeRO-2, FSDP2 or DDP, or adamw, lion, nadam, rmsprop-tf or sgd",
        )
        require(
            not self.sam,
            "--optim.sam does not run under DeepSpeed, whose engine updates the weights by itself after a backward "
            "pass and leaves no place for the second one; launch without it",
        )
        require(not (self.ema and zero_stage == 3), "--optim.ema needs whole parameters on a GPU; use ZeRO-2")
