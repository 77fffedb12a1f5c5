"""The figures of a run as it goes: summed on the device, read at intervals, printed and logged."""

import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from adcorre import AdCorreLoss, AdCorreOutput
from train.build import Network
from train.data.loading import TrainSteps
from train.errors import Diverged
from train.evaluation import Evaluation
from train.resume import what_is_left
from train.run_folder import RunFolder
from train.settings import Settings

# mean_weight is Eq. 7's w averaged over the images: FD fades with it even where NFD, and so no embedding, moves.
TERMS = tuple(name for name in AdCorreOutput._fields if name != "attention")
FIGURES = (*TERMS, "mean_weight", "accuracy")


class Totals:
    """Sums of the loss's figures, kept on the device: nothing waits for it until they are read."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._epoch, self._epoch_steps = torch.zeros(len(FIGURES), device=device), 0
        self._reset()

    def state(self) -> dict[str, Any]:
        """To resume in the middle of an epoch."""
        return {
            "epoch": self._epoch,
            "epoch_steps": self._epoch_steps,
            "sum": self._sum,
            "steps": self._steps,
            "images": self._images,
            "seconds": time.perf_counter() - self._since,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self._epoch, self._epoch_steps = state["epoch"].to(self.device), state["epoch_steps"]
        self._sum, self._steps, self._images = state["sum"].to(self.device), state["steps"], state["images"]
        self._since = time.perf_counter() - state["seconds"]

    def finite(self) -> bool:
        """Whether every figure since the last reading was; waits for the device."""
        return bool(self._sum.isfinite().all())

    def _reset(self) -> None:
        self._sum, self._steps, self._images = torch.zeros(len(FIGURES), device=self.device), 0, 0
        self._since = time.perf_counter()

    def add(self, output: AdCorreOutput, counts: Tensor, images: int) -> None:
        """One step over `images` images, `counts` (2, C) of them predicted right and seen."""
        right, seen = counts.to(output.attention.dtype)
        weight = (output.attention * seen).sum() / seen.sum()
        terms = (*(getattr(output, name) for name in TERMS), weight, right.sum() / seen.sum())
        self._sum += torch.stack([term.float() for term in terms])
        self.attention = output.attention
        self._steps += 1
        self._images += images

    def read(self) -> dict[str, float]:
        """The means since the last reading."""
        figures = dict(zip(FIGURES, (self._sum / self._steps).tolist(), strict=True))
        figures["images_per_second"] = self._images / (time.perf_counter() - self._since)
        self._epoch, self._epoch_steps = self._epoch + self._sum, self._epoch_steps + self._steps
        self._reset()
        return figures

    def epoch(self) -> dict[str, float]:
        """The means of the whole epoch."""
        mean = (self._epoch + self._sum) / (self._epoch_steps + self._steps)
        return dict(zip(FIGURES, mean.tolist(), strict=True))


def describe_network(network: Network, settings: Settings, device: torch.device) -> None:
    """Print size, place, dtype and layout of the model, and the measurement that chose them."""
    parameters = sum(parameter.numel() for parameter in network.model.parameters())
    print(f"{settings.model.backbone}: {parameters:,} parameters, on {device}; run folder {settings.run.out}")
    speed, trials = settings.speed, ", ".join(map(str, network.trials))
    layout = "channels_last" if speed.channels_last == "yes" else "contiguous"
    measured = f" (images/s measured, forward and backward: {trials})" if trials else ""
    kept = "; freed memory is kept" if network.keeps_freed_memory else ""
    print(f"{speed.amp if speed.amp != 'none' else 'float32'}, {layout}{measured}{kept}", flush=True)


def progress(steps: TrainSteps, epoch: int, done: int, settings: Settings) -> Any:
    """The steps of an epoch that are left, behind a bar where somebody is looking."""
    return tqdm(
        steps,
        f"epoch {epoch}/{settings.optimizer.epochs}",
        initial=done,
        total=len(steps),
        bar_format="{desc} {bar:10} {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}",
        leave=False,
        dynamic_ncols=True,
        disable=not sys.stdout.isatty(),
        file=sys.stdout,
    )


def check_finite(figures: dict[str, float], epoch: int, step: int, settings: Settings) -> None:
    if not math.isfinite(figures["loss"]):
        shown = ", ".join(f"{key} {figures[key]:.4g}" for key in ("ce", "fd", "md", "ed"))
        raise Diverged(
            f"the loss is no longer finite (epoch {epoch}, within the last steps up to {step}: {shown}). "
            f"A lower --lr or --lambd, or --clip, may help; {what_is_left(Path(settings.run.out))}"
        )


def log_steps(
    folder: RunFolder,
    bar: Any,
    totals: Totals,
    epoch: int,
    step: int,
    lr: float,
    class_names: Sequence[str],
    settings: Settings,
) -> None:
    figures = totals.read()
    check_finite(figures, epoch, step, settings)
    row: dict[str, float | int] = {"epoch": epoch, "step": step, "lr": lr, "lambd": settings.loss.lambd_at(step - 1)}
    folder.log("steps", step, row | figures | _weights(class_names, totals.attention.tolist()))
    if bar.disable:
        line = f"{_format_figures(figures)}  {figures['images_per_second']:.0f} images/s"
        print(f"epoch {epoch}/{settings.optimizer.epochs}  step {step}  {line}", flush=True)
    else:
        short = {"mean_weight": "weight", "accuracy": "acc"}
        bar.set_postfix_str(" ".join(f"{short.get(key, key)} {figures[key]:.3f}" for key in FIGURES[1:]))


def log_epoch(
    folder: RunFolder,
    epoch: int,
    step: int,
    seconds: float,
    train_figures: dict[str, float],
    found: Evaluation,
    loss_fn: AdCorreLoss,
    better: bool,
    settings: Settings,
) -> None:
    figures: dict[str, float | int] = {"epoch": epoch, "step": step, "seconds": seconds}
    figures |= {f"train_{key}": value for key, value in train_figures.items()}
    figures["validation_accuracy"] = found.accuracy
    figures["validation_average_accuracy"] = found.average_accuracy
    figures["validation_cross_entropy"] = found.cross_entropy
    figures |= {f"recall_{name}": value for name, value in zip(found.class_names, found.recall, strict=True)}
    figures |= _weights(found.class_names, loss_fn.attention_map.weights().tolist())
    folder.log("epochs", epoch, figures)
    folder.write_validation(epoch, found)
    title = f"epoch {epoch}/{settings.optimizer.epochs}"
    print(f"{title}  training: {_format_figures(train_figures)}  {seconds:.0f} s")
    print(f"{title}  validation: {found.summary()}{'  best so far' if better else ''}", flush=True)


def _weights(class_names: Sequence[str], weights: Sequence[float]) -> dict[str, float]:
    """Eq. 7's w as columns."""
    return {f"weight_{name}": weight for name, weight in zip(class_names, weights, strict=True)}


def _format_figures(figures: dict[str, float]) -> str:
    return "  ".join(f"{key.replace('_', ' ')} {figures[key]:.4f}" for key in FIGURES)
