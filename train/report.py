"""The figures of a run as it goes: summed on the device, read at intervals, printed and logged."""

import math
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adcorre import AdCorreLoss, AdCorreOutput
from train.bars import bar, columns, wrap
from train.build import Network
from train.data.loading import TrainSteps
from train.errors import Diverged, UserError
from train.evaluation import Evaluation
from train.ranks import Ranks
from train.recipe import recipe_values
from train.resume import newest_checkpoint_note
from train.run_folder import RunFolder
from train.settings import Settings, format_value

TIMES = " × "
# mean_weight is Eq. 7's w averaged over the images: FD fades with it even where NFD, and so no embedding, moves.
TERMS = tuple(name for name in AdCorreOutput._fields if name != "attention")
FIGURES = (*TERMS, "mean_weight", "accuracy")
RESOLVED = {"out", "device", "workers", "augment", "amp", "channels_last", "data", "recipe", "overwrite", "resume"}


def describe_settings(settings: Settings) -> str:
    """What differs from the paper's recipe, by a recipe and by the user; settings.json has every setting."""
    values = settings.values()
    try:
        recipe = recipe_values(settings.run.recipe) if settings.run.recipe else {}
    except UserError:  # a file that was there when the run began
        recipe = {}
    defaults = Settings().values()
    other = {name for name, value in values.items() if value != {**defaults, **recipe}[name]} - RESOLVED
    by_recipe = [name for name in values if name in recipe and name not in other and values[name] != defaults[name]]
    title = f"recipe {settings.run.recipe}" if settings.run.recipe else "recipe: the paper's"
    lines = [f"{title}: {_listed(values, by_recipe)}" if by_recipe else title]
    if other:
        lines.append(f"other than that: {_listed(values, [name for name in values if name in other])}")
    return wrap("\n".join(lines))


def _listed(values: Mapping[str, Any], names: Sequence[str]) -> str:
    return ", ".join(f"{name} {format_value(values[name])}" for name in names)


class Totals:
    """Sums of the loss's figures, kept on the device: nothing waits for it until they are read."""

    def __init__(self, device: torch.device) -> None:
        self.device, self._seconds = device, 0.0
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
            "seconds": self._seconds + time.perf_counter() - self._since,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self._epoch, self._epoch_steps = state["epoch"].to(self.device), state["epoch_steps"]
        self._sum, self._steps, self._images = state["sum"].to(self.device), state["steps"], state["images"]
        self._seconds = state["seconds"]

    def start_clock(self) -> None:
        """Now the steps begin: what lies between loading a run and its first step is no time of theirs."""
        self._since = time.perf_counter()

    def finite(self) -> bool:
        """Whether every figure since the last reading was; waits for the device."""
        return bool(self._sum.isfinite().all())

    def _reset(self) -> None:
        self._sum, self._steps, self._images = torch.zeros(len(FIGURES), device=self.device), 0, 0
        self._seconds = 0.0
        self.start_clock()

    def add(self, output: AdCorreOutput, counts: Tensor, images: int) -> None:
        """One step over `images` images, `counts` (2, C) of them predicted right and seen."""
        right, seen = counts.to(output.attention.dtype)
        weight = (output.attention * seen).sum() / seen.sum()
        terms = (*(getattr(output, name) for name in TERMS), weight, right.sum() / seen.sum())
        self._sum += torch.stack([term.float() for term in terms])
        self.attention = output.attention
        self._steps += 1
        self._images += images

    def peek(self) -> dict[str, float]:
        """The means since the last reading, of a step at least."""
        figures = dict(zip(FIGURES, (self._sum / self._steps).tolist(), strict=True))
        return figures | {"images_per_second": self._images / (self._seconds + time.perf_counter() - self._since)}

    def read(self) -> dict[str, float]:
        """The means since the last reading."""
        figures = self.peek()
        self._epoch, self._epoch_steps = self._epoch + self._sum, self._epoch_steps + self._steps
        self._reset()
        return figures

    def epoch(self) -> dict[str, float]:
        """The means of the whole epoch."""
        mean = (self._epoch + self._sum) / (self._epoch_steps + self._steps)
        return dict(zip(FIGURES, mean.tolist(), strict=True))


def describe_network(network: Network, settings: Settings, device: torch.device) -> None:
    """Print size, place, dtype and layout of the model, the measurement that chose them, and the run folder."""
    parameters = list(network.model.parameters())
    total = sum(parameter.numel() for parameter in parameters)
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    number = torch.get_num_threads()
    threads = f", {number} thread{'' if number == 1 else 's'}" if device.type == "cpu" else ""
    speed, trials = settings.speed, ", ".join(map(str, network.trials))
    layout = "channels_last" if speed.channels_last == "yes" else "contiguous"
    part = f", {trained:,} of them trained" if trained < total else ""
    dtype = speed.amp if speed.amp != "none" else "float32"
    memory = "; freed memory stays reserved" if network.keeps_freed_memory else ""
    lines = [
        f"{settings.model.backbone}: {total:,} parameters{part}, on {device}{threads}, in {dtype}, {layout}{memory}"
    ]
    if trials:
        lines.append(f"images/s measured, forward and backward: {trials}")
    print(wrap("\n".join(lines)))
    print(f"run folder {settings.run.out} (settings.json has every setting)")


def describe_steps(steps: TrainSteps, settings: Settings, ranks: Ranks) -> str:
    """The effective batch and what it is made of."""
    data, images = settings.data, steps.sampler.sizes[0]
    parts = [f"{data.batch_size:,} a pass"]
    parts += [f"{data.virtual_batch} passes"] if data.virtual_batch > 1 else []
    parts += [f"{ranks.world} processes"] if ranks.world > 1 else []
    return (
        f"{plural(settings.optimizer.epochs, 'epoch')} of {plural(len(steps), 'step')}, each of {images:,} images"
        f"{f' ({TIMES.join(parts)})' if len(parts) > 1 else ''}"
    )


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def progress(steps: TrainSteps, epoch: int, done: int, settings: Settings) -> Any:
    """The steps of an epoch that are left, behind a bar where somebody is looking."""
    result = bar(steps, f"epoch {epoch}/{settings.optimizer.epochs}", initial=done, total=len(steps))
    result.shown = 0.0
    return result


def show_figures(bar: Any, totals: Totals) -> None:
    """The figures behind the bar, once a second: reading them waits for the device."""
    now = time.monotonic()
    if now < bar.shown + 1:
        return
    bar.shown, figures = now, totals.peek()
    names = ("loss", "accuracy") if columns() < 110 else FIGURES
    short = {"mean_weight": "weight", "accuracy": "acc"}
    text = " ".join(f"{short.get(name, name)} {figures[name]:.3f}" for name in names)
    bar.set_postfix_str(f" {text} {figures['images_per_second']:.0f}/s", refresh=False)


def next_commands(run: Path) -> str:
    """What can be done with a run that has ended."""
    folder = shlex.quote(str(run))
    commands = {
        f"python -m train.evaluate {folder}": "intervals, correlations, t-SNE",
        f"python -m train.html_report {folder}": "the run on one page",
        f"python -m train.predict {folder} PICTURES": "the faces in your pictures",
        f"python -m train.demo {folder}": "try it in the browser",
        f"tensorboard --logdir {folder}": "curves",
    }
    width = max(map(len, commands))
    return "\n  ".join(["next:", *(f"{command:<{width}}  {words}" for command, words in commands.items())])


def check_finite(figures: dict[str, float], epoch: int, step: int, settings: Settings) -> None:
    if not math.isfinite(figures["loss"]):
        shown = ", ".join(f"{key} {figures[key]:.4g}" for key in ("ce", "fd", "md", "ed"))
        raise Diverged(
            f"the loss is no longer finite (epoch {epoch}, within the last steps up to {step}: {shown}). "
            f"A lower --lr or --lambd, or --clip, may help; {newest_checkpoint_note(Path(settings.run.out))}"
        )


class Log:
    """The figures of a run on rank 0: rows of its folder, lines of stdout."""

    def __init__(self, folder: RunFolder, class_names: Sequence[str], settings: Settings, loss_fn: AdCorreLoss) -> None:
        self.folder, self.class_names, self.settings, self.loss_fn = folder, class_names, settings, loss_fn

    def steps(self, bar: Any, totals: Totals, epoch: int, step: int, lr: float, gradients: dict[str, float]) -> None:
        """The means since the last row."""
        figures = totals.read()
        check_finite(figures, epoch, step, self.settings)
        row: dict[str, float | int] = {"epoch": epoch, "step": step, "lr": lr}
        row["lambd"] = self.settings.loss.lambd_at(step - 1)
        self.folder.log("steps", step, row | figures | gradients | self._weights(totals.attention))
        if bar.disable:
            line = f"{_format_figures(figures)}  {figures['images_per_second']:.0f} images/s"
            print(f"epoch {epoch}/{self.settings.optimizer.epochs}  step {step}  {line}", flush=True)

    def epoch(
        self, epoch: int, step: int, seconds: float, train: dict[str, float], evaluation: Evaluation, better: bool
    ) -> None:
        """The means of the epoch, and its validation."""
        figures: dict[str, float | int] = {"epoch": epoch, "step": step, "seconds": seconds}
        figures |= {f"train_{key}": value for key, value in train.items()}
        for name in ("accuracy", "average_accuracy", "nll", "ece"):
            figures[f"validation_{name}"] = getattr(evaluation, name)
        figures |= {f"recall_{name}": value for name, value in zip(self.class_names, evaluation.recall, strict=True)}
        self.folder.log("epochs", epoch, figures | self._weights(self.loss_fn.attention_map.weights()))
        self.folder.write_validation(epoch, evaluation)
        title = f"epoch {epoch}/{self.settings.optimizer.epochs}"
        print(wrap(f"{title}  training: {_format_figures(train)}  {seconds:.0f} s"))
        print(f"{title}  validation: {evaluation.summary()}{'  best so far' if better else ''}", flush=True)
        if evaluation.collapse and epoch > 2:  # many runs begin so
            print(wrap(evaluation.collapse), flush=True)

    def _weights(self, attention: Tensor) -> dict[str, float]:
        """Eq. 7's w as columns."""
        return {f"weight_{name}": weight for name, weight in zip(self.class_names, attention.tolist(), strict=True)}


def _format_figures(figures: dict[str, float]) -> str:
    return "  ".join(f"{key.replace('_', ' ')} {figures[key]:.4f}" for key in FIGURES)
