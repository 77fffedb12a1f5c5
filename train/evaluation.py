"""What a classifier is worth on a split: every sample counted once."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics import CatMetric, MetricCollection
from torchmetrics.classification import (
    MulticlassCalibrationError,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassPrecision,
    MulticlassRecall,
)

from train.bars import format_table
from train.data.loading import Batches
from train.disk import write_rows
from train.retrieval import retrieval_metrics

COLLAPSED = 0.95  # share of the predictions that are one class


@dataclass(frozen=True)
class Evaluation:
    """`average_accuracy` is the mean of the recalls of the classes that have samples; `absent` names the others.

    nll: mean cross-entropy in nats. ece: expected calibration error, 15 bins of equal width (Guo et al. 2017).
    retrieval: what `train.retrieval` says of the embeddings, where asked for.
    """

    class_names: tuple[str, ...]
    accuracy: float
    average_accuracy: float
    nll: float
    ece: float
    precision: tuple[float, ...]
    recall: tuple[float, ...]
    f1: tuple[float, ...]
    support: tuple[int, ...]
    confusion: NDArray[np.int64]  # rows: the true class, columns: the predicted one
    retrieval: Mapping[str, float] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        return sum(self.support)

    @property
    def absent(self) -> tuple[str, ...]:
        return tuple(name for name, count in zip(self.class_names, self.support, strict=True) if count == 0)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: what is not defined, such as the recall of a class without samples, is None."""
        per_class = {
            name: {"precision": nan_to_none(p), "recall": nan_to_none(r), "f1": nan_to_none(f), "samples": count}
            for name, p, r, f, count in self._rows()
        }
        return {
            "samples": self.samples,
            "accuracy": self.accuracy,
            "average_accuracy": self.average_accuracy,
            "average_accuracy_over": [name for name in self.class_names if name not in self.absent],
            "nll": nan_to_none(self.nll),
            "ece": nan_to_none(self.ece),
            **{name: nan_to_none(value) for name, value in self.retrieval.items()},
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
        rows = [["", "precision", "recall", "F1", "samples"]]
        for name, *figures, count in self._rows():
            rows.append([name, *("-" if math.isnan(figure) else f"{figure:.4f}" for figure in figures), f"{count:,}"])
        return format_table(rows)

    def write_tables(self, confusion: Path, per_class: Path) -> None:
        counts = zip(self.class_names, self.confusion.tolist(), strict=True)
        write_rows(confusion, [["true \\ predicted", *self.class_names], *([name, *row] for name, row in counts)])
        figures = [
            [name, *("" if x is None else x for x in map(nan_to_none, row)), n] for name, *row, n in self._rows()
        ]
        write_rows(per_class, [["class", "precision", "recall", "f1", "samples"], *figures])

    def draw_confusion(self, path: Path, title: str) -> None:
        """The confusion matrix as a picture."""
        from train.analysis.pictures import draw_confusion  # here: matplotlib is needed for nothing else

        draw_confusion(path, self.confusion, self.class_names, title)

    def _rows(self) -> list[tuple[str, float, float, float, int]]:
        return list(zip(self.class_names, self.precision, self.recall, self.f1, self.support, strict=True))


def nan_to_none(value: Any) -> Any:
    """For JSON: None in place of a number that is not finite; lists, of any depth, entry by entry."""
    if isinstance(value, list):
        return [nan_to_none(item) for item in value]
    return value if math.isfinite(value) else None


@torch.inference_mode()
def evaluate(
    model: nn.Module, batches: Batches, class_names: Sequence[str], device: torch.device, *, retrieval: bool = False
) -> Evaluation:
    """Run the model, in eval mode, over all batches. `model` gives (logits (n, C), embeddings (n, k, d)).

    In a process group the ranks' batches are parts of one split: every rank gets the figures of the whole. With
    `retrieval` all embeddings are held in memory at once, and compared.
    """
    vectors, labels = CatMetric().to(device), CatMetric().to(device)
    metrics, calibration = _metrics(len(class_names)).to(device), _calibration(len(class_names)).to(device)
    cross_entropy = torch.zeros((), dtype=torch.float64 if device.type == "cpu" else torch.float32, device=device)
    training = model.training
    model.eval()
    for images, targets in batches:
        images, targets = images.to(device, non_blocking=True), targets.to(device, non_blocking=True)
        logits, embeddings = model(images)
        logits = logits.float()
        metrics.update(logits, targets)
        calibration.update(logits.softmax(1), targets)
        cross_entropy += nn.functional.cross_entropy(logits, targets, reduction="sum")
        if retrieval:
            vectors.update(embeddings.float())
            labels.update(targets.float())
    model.train(training)
    if torch.distributed.is_initialized():  # the metrics add their counts over the ranks by themselves
        torch.distributed.all_reduce(cross_entropy)
    retrieved = retrieval_metrics(vectors.compute(), labels.compute().long()) if retrieval else {}
    computed = {**metrics.compute(), "ece": calibration.compute()}
    return _evaluation(computed, float(cross_entropy), tuple(class_names), retrieved)


def evaluation_from_logits(logits: Tensor, targets: Tensor, class_names: Sequence[str]) -> Evaluation:
    """The figures of logits (n, C), or log-probabilities, that are there already; targets (n,)."""
    metrics = _metrics(len(class_names))
    metrics.update(logits, targets)
    cross_entropy = nn.functional.cross_entropy(logits.double(), targets, reduction="sum")
    computed = {**metrics.compute(), "ece": _calibration(len(class_names))(logits.softmax(1), targets)}
    return _evaluation(computed, float(cross_entropy), tuple(class_names), {})


def _metrics(classes: int) -> MetricCollection:
    return MetricCollection(
        {
            "confusion": MulticlassConfusionMatrix(classes, validate_args=False),
            "precision": MulticlassPrecision(classes, average=None, validate_args=False),
            "recall": MulticlassRecall(classes, average=None, validate_args=False),
            "f1": MulticlassF1Score(classes, average=None, validate_args=False),
        }
    )


def _calibration(classes: int) -> MulticlassCalibrationError:
    """Takes probabilities: it would take logits that all lie in [0, 1] for such."""
    return MulticlassCalibrationError(classes, n_bins=15, validate_args=False)


def _evaluation(
    computed: dict[str, Tensor], cross_entropy: float, class_names: tuple[str, ...], retrieval: Mapping[str, float]
) -> Evaluation:
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
        nll=cross_entropy / total,
        ece=float(computed["ece"]),
        precision=tuple(figures("precision", predicted > 0).tolist()),
        recall=tuple(recall.tolist()),
        f1=tuple(figures("f1", present | (predicted > 0)).tolist()),
        support=tuple(support.tolist()),
        confusion=confusion,
        retrieval=retrieval,
    )


def percent(value: float | None) -> str:
    """Percent with two decimals; a dash for a figure that is not defined."""
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.2f}"
