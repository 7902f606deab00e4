"""What other trainers call things: whoever types their flag is told ours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from engine.config.checks import ConfigError

OURS = {
    "--lr": "learning-rate initial-lr base-lr lr0 max-lr",
    "--optim.schedule": "lr-scheduler lr-scheduler-type scheduler sched lr-schedule",
    "--optim.weight-decay": "wd decay l2",
    "--optim.momentum": "sgd-momentum mom",
    "--optim.warmup-epochs": "lr-warmup-epochs warmup warmup-ratio",
    "--optim.label-smoothing": "smoothing label-smoothing-factor",
    "--optim.clip-norm": "clip-grad clip-grad-norm grad-clip gradient-clip-val max-grad-norm",
    "--optim.ema": "model-ema model-ema-decay ema-decay use-ema",
    "--optim.sam": "sam-rho rho",
    "--optimizer": "opt optim optim-name optimiser",
    "--batch-size": "bs batch train-batch-size per-device-train-batch-size total-batch-size",
    "--epochs": "num-epochs max-epochs n-epochs num-train-epochs epoch",
    "--image-size": "img-size imgsz input-size image-resolution resolution crop-size train-crop-size img size",
    "--arch": "model model-name architecture net network backbone model-name-or-path",
    "--finetune": "freeze freeze-layers freeze-backbone",
    "--pretrained": "initial-checkpoint weights init-from load-from pretrained-weights pretrained-path",
    "--resume": "resume-from-checkpoint resume-from ckpt-path continue",
    "--data.name": "dataset dataset-name",
    "--data.root": "data-dir data-path dataset-path dataset-dir train-dir data dataset-root imagefolder",
    "--data.workers": "num-workers n-workers dataloader-num-workers",
    "--data.flip": "hflip horizontal-flip random-flip",
    "--data.crop-scale": "scale random-resized-crop-scale",
    "--augment.policy": "aa auto-augment autoaugment aug-policy rand-augment ra-magnitude",
    "--augment": "augmentation augmentations aug train-augmentation",
    "--augment.mixup": "mixup-alpha mixup-prob",
    "--augment.cutmix": "cutmix-alpha cutmix-prob",
    "--augment.erasing": "reprob random-erase random-erasing re-prob random-erase-prob",
    "--augment.jitter": "color-jitter colorjitter hsv-h hsv-s hsv-v",
    "--augment.vertical-flip": "vflip flipud",
    "--augment.rotation": "degrees random-rotation",
    "--augment.mix-off-epochs": "mixup-off-epoch close-mosaic",
    "--data.interpolation": "train-interpolation",
    "--output": "output-dir out out-dir save-dir log-dir logdir default-root-dir work-dir project experiment",
    "--precision": "amp fp16 bf16 mixed-precision dtype half amp-dtype",
    "--compile": "torchcompile torch-compile compile-model",
    "--recompute": "grad-checkpointing gradient-checkpointing checkpoint-activations activation-checkpointing",
    "--parallel.micro-batch-size": "grad-accum-steps gradient-accumulation-steps accumulate-grad-batches accum",
    "--sync-bn": "sync-batchnorm sync-batch-norm",
    "--seed": "random-seed manual-seed seed-everything",
    "--log.every": "log-interval print-freq logging-steps log-every-n-steps",
    "--log.checkpoint-steps": "save-steps checkpoint-interval",
    "--log.keep-checkpoints": "checkpoint-hist save-total-limit save-top-k",
    "--model.dropout": "drop drop-rate dropout-rate",
    "--model.drop-path": "drop-path-rate stochastic-depth stochastic-depth-prob",
    "--model.channels-last": "memory-format",
    "--data.channels": "in-chans in-channels",
    "--stop.patience": "early-stopping-patience early-stopping",
}
"""Ours, and theirs in timm, torchvision's references, Lightning, Hugging Face, fastai and ultralytics."""
ELSEWHERE = {
    "launch/evaluate.py": "test-only eval-only evaluate validate eval",
    "the folders of --data.root, which say how many classes there are": "num-classes n-classes nb-classes",
    "CUDA_VISIBLE_DEVICES, in front of the command; a GPU that is there is taken": "device gpu cuda no-cuda use-cpu",
    "accelerate launch, in front of the command": "gpus devices num-gpus ngpus nproc-per-node strategy accelerator",
}
"""What is done by another command, or by the data."""
LETTERS = {"-b": "--batch-size", "-j": "--data.workers", "-a": "--arch", "-c": "--config", "-o": "--output"}
"""Theirs of one letter; ours have none."""


def refuse_other_names(arguments: Sequence[str], known: Iterable[str]) -> None:
    """Raise ConfigError for a flag that is none of the `known` ones and that other trainers have, naming ours."""
    known = set(known)
    by_leaf = {flag.rpartition(".")[2]: flag for flag in known if "." in flag}
    theirs = {name: ours for ours, names in (OURS | ELSEWHERE).items() for name in names.split()}
    for argument in arguments:
        if argument in LETTERS:
            raise ConfigError(f"{argument}: no such flag; did you mean {LETTERS[argument]}?")
        if not argument.startswith("--"):
            continue
        name = argument[2:].partition("=")[0].replace("_", "-").lower()
        if f"--{name}" in known or f"--{name}".replace("--no-", "--") in known or argument == "--":
            continue
        ours = theirs.get(name) or by_leaf.get(name)
        if ours in ELSEWHERE:
            raise ConfigError(f"{argument.partition('=')[0]}: not a flag of training; use {ours}")
        if ours is not None:
            raise ConfigError(f"{argument.partition('=')[0]}: no such flag; did you mean {ours}?")
