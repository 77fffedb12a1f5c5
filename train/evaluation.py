"""What a classifier is worth on a split: every sample counted once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassPrecision,
    MulticlassRecall,
)

from train.data.base import display_width
from train.data.loading import Batches
from train.disk import write_rows

COLLAPSED = 0.95  # share of the predictions that are one class


@dataclass(frozen=True)
class Evaluation:
    """`average_accuracy` is the mean of the recalls of the classes that have samples; `absent` names the others."""

    class_names: tuple[str, ...]
    accuracy: float
    average_accuracy: float
    cross_entropy: float
    precision: tuple[float, ...]
    recall: tuple[float, ...]
    f1: tuple[float, ...]
    support: tuple[int, ...]
    confusion: NDArray[np.int64]  # rows: the true class, columns: the predicted one

    @property
    def samples(self) -> int:
        return sum(self.support)

    @property
    def absent(self) -> tuple[str, ...]:
        return tuple(name for name, count in zip(self.class_names, self.support, strict=True) if count == 0)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: what is not defined, such as the recall of a class without samples, is None."""
        per_class = {
            name: {"precision": _or_none(p), "recall": _or_none(r), "f1": _or_none(f), "samples": count}
            for name, p, r, f, count in self._rows()
        }
        return {
            "samples": self.samples,
            "accuracy": self.accuracy,
            "average_accuracy": self.average_accuracy,
            "average_accuracy_over": [name for name in self.class_names if name not in self.absent],
            "cross_entropy": _or_none(self.cross_entropy),
            "classes": per_class,
        }

    @property
    def collapse(self) -> str:
        """A note where nearly all samples are predicted as one class, though not nearly all are of it; else ""."""
        predicted = self.confusion.sum(axis=0)
        most = int(predicted.argmax())
        share, own = (int(count) / self.samples for count in (predicted[most], self.support[most]))
        if share < COLLAPSED or own > 0.8:
            return ""
        return (
            f"note: collapsed: {share:.0%} of the images are predicted as {self.class_names[most]} ({own:.0%} are). "
            "More epochs, a lower --lambd, --lambd-warmup or another --lr may help"
        )

    def summary(self) -> str:
        note = f" (average over {len(self.class_names) - len(self.absent)} classes; none of " if self.absent else ""
        note += ", ".join(self.absent) + ")" if self.absent else ""
        return f"accuracy {self.accuracy:.4f}  average accuracy {self.average_accuracy:.4f}{note}"

    def table(self) -> str:
        width = max(9, *map(display_width, self.class_names)) + 1
        lines = [f"{'':<{width}}{'precision':>10}{'recall':>10}{'F1':>10}{'samples':>10}"]
        for name, *figures, count in self._rows():
            shown = "".join(f"{'-':>10}" if math.isnan(figure) else f"{figure:>10.4f}" for figure in figures)
            lines.append(f"{name}{' ' * (width - display_width(name))}{shown}{count:>10,}")
        return "\n".join(lines)

    def write_tables(self, confusion: Path, per_class: Path) -> None:
        counts = zip(self.class_names, self.confusion.tolist(), strict=True)
        write_rows(confusion, [["true \\ predicted", *self.class_names], *([name, *row] for name, row in counts)])
        figures = [[name, *("" if x is None else x for x in map(_or_none, row)), n] for name, *row, n in self._rows()]
        write_rows(per_class, [["class", "precision", "recall", "f1", "samples"], *figures])

    def draw_confusion(self, path: Path, title: str) -> None:
        """The confusion matrix as a picture."""
        from train.analysis.pictures import draw_confusion  # here: matplotlib is needed for nothing else

        draw_confusion(path, self.confusion, self.class_names, title)

    def _rows(self) -> list[tuple[str, float, float, float, int]]:
        return list(zip(self.class_names, self.precision, self.recall, self.f1, self.support, strict=True))


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


@torch.inference_mode()
def evaluate(model: nn.Module, batches: Batches, class_names: Sequence[str], device: torch.device) -> Evaluation:
    """Run the model, in eval mode, over all batches. `model` gives (logits (n, C), embeddings).

    In a process group the ranks' batches are parts of one split: every rank gets the figures of the whole.
    """
    metrics = _metrics(len(class_names)).to(device)
    cross_entropy = torch.zeros((), dtype=torch.float64 if device.type == "cpu" else torch.float32, device=device)
    training = model.training
    model.eval()
    for images, targets in batches:
        images, targets = images.to(device, non_blocking=True), targets.to(device, non_blocking=True)
        logits = model(images)[0].float()
        metrics.update(logits, targets)
        cross_entropy += nn.functional.cross_entropy(logits, targets, reduction="sum")
    model.train(training)
    if torch.distributed.is_initialized():  # the metrics add their counts over the ranks by themselves
        torch.distributed.all_reduce(cross_entropy)
    return _evaluation(metrics.compute(), float(cross_entropy), tuple(class_names))


def evaluation_of(logits: Tensor, targets: Tensor, class_names: Sequence[str]) -> Evaluation:
    """The figures of logits (n, C), or log-probabilities, that are there already; targets (n,)."""
    metrics = _metrics(len(class_names))
    metrics.update(logits, targets)
    cross_entropy = nn.functional.cross_entropy(logits.double(), targets, reduction="sum")
    return _evaluation(metrics.compute(), float(cross_entropy), tuple(class_names))


def _metrics(classes: int) -> MetricCollection:
    return MetricCollection(
        {
            "confusion": MulticlassConfusionMatrix(classes, validate_args=False),
            "precision": MulticlassPrecision(classes, average=None, validate_args=False),
            "recall": MulticlassRecall(classes, average=None, validate_args=False),
            "f1": MulticlassF1Score(classes, average=None, validate_args=False),
        }
    )


def _evaluation(computed: dict[str, Tensor], cross_entropy: float, class_names: tuple[str, ...]) -> Evaluation:
    confusion = computed["confusion"].cpu().numpy().astype(np.int64)
    support = confusion.sum(axis=1)
    predicted = confusion.sum(axis=0)
    present = support > 0

    def figures(name: str, defined: NDArray[np.bool_]) -> NDArray[np.float64]:
        return np.where(defined, computed[name].double().cpu().numpy(), np.nan)

    recall = figures("recall", present)
    total = int(support.sum())
    return Evaluation(
        class_names=class_names,
        accuracy=float(np.trace(confusion) / total),
        average_accuracy=float(recall[present].mean()),
        cross_entropy=cross_entropy / total,
        precision=tuple(figures("precision", predicted > 0).tolist()),
        recall=tuple(recall.tolist()),
        f1=tuple(figures("f1", present | (predicted > 0)).tolist()),
        support=tuple(support.tolist()),
        confusion=confusion,
    )


def percent(value: float | None) -> str:
    """Percent with two decimals; a dash for a figure that is not defined."""
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.2f}"
