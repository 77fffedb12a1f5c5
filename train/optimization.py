"""The optimizer and its learning rate."""

import math
from typing import Any

import torch
from timm.optim import param_groups_weight_decay
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from train.settings import OptimizerSettings, Settings


def build_optimizer(model: nn.Module, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """A fused optimizer of PyTorch. Biases and norms do not decay. Each group's "lr_scale" multiplies the schedule."""
    decay, parameters = settings.weight_decay, parameter_groups(model, settings)
    betas = (settings.beta1, settings.beta2)
    if settings.optimizer != "sgd":
        kind = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.AdamW
        return kind(parameters, settings.lr, betas=betas, weight_decay=decay, fused=True)
    momentum = settings.momentum
    return torch.optim.SGD(
        parameters, settings.lr, momentum=momentum, weight_decay=decay, nesterov=momentum > 0, fused=True
    )


def parameter_groups(model: nn.Module, settings: OptimizerSettings) -> list[dict[str, Any]]:
    """The trained parameters; with --lr-backbone the backbone's are groups of their own."""
    parts = [("", model)] if not settings.lr_backbone else list(model.named_children())
    groups = []
    for name, part in parts:
        plain = [{"params": [parameter for parameter in part.parameters() if parameter.requires_grad]}]
        scale = settings.lr_backbone / settings.lr if name == "backbone" else 1.0
        decay = settings.weight_decay
        groups += [
            {**group, "lr_scale": scale} for group in (param_groups_weight_decay(part, decay) if decay else plain)
        ]
    return [group for group in groups if group["params"]]


def build_plateau(optimizer: torch.optim.Optimizer, settings: OptimizerSettings) -> ReduceLROnPlateau | None:
    """The plateau schedule, which counts validation figures and lowers the groups' "lr"; None for other schedules.

    PyTorch's drops the rate at the first epoch after `patience` ones without a better figure.
    """
    if settings.schedule != "plateau":
        return None
    patience = settings.lr_drop_epochs - 1
    return ReduceLROnPlateau(optimizer, "max", settings.lr_drop, patience, threshold=0.0, eps=0.0)


def set_learning_rate(
    optimizer: torch.optim.Optimizer, settings: OptimizerSettings, step: int, steps_per_epoch: int
) -> float:
    """Set each group's "lr" for a step; the rate before the groups' "lr_scale"."""
    groups = optimizer.param_groups
    if settings.schedule == "plateau" and step > warmup_steps(settings, steps_per_epoch):
        return float(groups[0]["lr"] / groups[0]["lr_scale"])  # what the plateau schedule left
    rate = learning_rate(settings, step, steps_per_epoch)
    for group in groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)  # older checkpoints have none
    return rate


def warmup_steps(settings: OptimizerSettings, steps_per_epoch: int) -> int:
    return round(settings.warmup_epochs * steps_per_epoch)


def learning_rate(settings: OptimizerSettings, step: int, steps_per_epoch: int) -> float:
    """Of step 0, 1, 2, …: a function of the step alone, so that there is no state to resume.

    For the plateau schedule: the rate before its first drop.
    """
    warmup = warmup_steps(settings, steps_per_epoch)
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    if settings.schedule == "plateau":
        return settings.lr
    if settings.schedule == "step":
        return settings.lr * settings.lr_drop ** (step // (steps_per_epoch * settings.lr_drop_epochs))
    if settings.schedule == "inverse":
        return settings.lr / (1 + settings.lr_decay * step)
    through = (step - warmup) / max(1, settings.epochs * steps_per_epoch - warmup)
    return settings.lr * (1 + math.cos(math.pi * min(1.0, through))) / 2


def warmup_notes(settings: Settings, steps_per_epoch: int) -> list[str]:
    """What to say about schedules whose end the run does not reach."""
    steps = settings.optimizer.epochs * steps_per_epoch
    rate = learning_rate(settings.optimizer, steps - 1, steps_per_epoch)
    lambd = settings.loss.lambd_at(steps - 1)
    notes = []
    if warmup_steps(settings.optimizer, steps_per_epoch) > steps:
        notes.append(
            f"note: --warmup-epochs {settings.optimizer.warmup_epochs:g} is longer than the run of "
            f"{settings.optimizer.epochs} epochs: the learning rate ends at {rate:.3g}, below --lr "
            f"{settings.optimizer.lr:g}"
        )
    if settings.loss.lambd and settings.loss.lambd_warmup >= steps:
        notes.append(
            f"note: --lambd-warmup {settings.loss.lambd_warmup:,} is longer than the run of {steps:,} steps: λ ends at "
            f"{lambd:.3g}, below --lambd {settings.loss.lambd:g}"
        )
    cooled = settings.loss.lambd_warmup + settings.loss.lambd_cooldown
    if settings.loss.lambd and settings.loss.lambd_cooldown and settings.loss.lambd_warmup < steps < cooled:
        notes.append(
            f"note: --lambd-cooldown {settings.loss.lambd_cooldown:,} ends at step {cooled:,}, after the run of "
            f"{steps:,} steps: λ ends at {lambd:.3g}, not 0"
        )
    optimizer = settings.optimizer
    if optimizer.schedule in ("step", "plateau") and optimizer.lr_drop_epochs >= optimizer.epochs:
        notes.append(
            f"note: --schedule {optimizer.schedule} never lowers the learning rate: --lr-drop-epochs "
            f"{optimizer.lr_drop_epochs} in a run of {optimizer.epochs} epochs"
        )
    return notes
