"""What a classifier is worth on a split: every sample counted once."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_calibration_error, multiclass_confusion_matrix

from train.analysis.intervals import classification_metrics
from train.bars import format_table
from train.data.loading import Batches
from train.disk import write_rows
from train.ranks import ALONE, Ranks
from train.retrieval import retrieval_metrics

COLLAPSED = 0.95  # share of the predictions that are one class


@dataclass(frozen=True)
class Evaluation:
    """`average_accuracy` is the mean of the recalls of the classes that have samples; `absent` names the others.

    nll: mean cross-entropy in nats. ece: expected calibration error, 15 bins of equal width (Guo et al. 2017).
    precision, recall, f1: of each class, NaN where they are not defined. retrieval: what `train.retrieval` says of the
    embeddings, where asked for.
    """

    class_names: tuple[str, ...]
    confusion: NDArray[np.int64]  # rows: the true class, columns: the predicted one
    support: tuple[int, ...]
    nll: float
    ece: float
    accuracy: float
    average_accuracy: float
    macro_f1: float
    precision: list[float]
    recall: list[float]
    f1: list[float]
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

    def _rows(self) -> list[tuple[str, float, float, float, int]]:
        return list(zip(self.class_names, self.precision, self.recall, self.f1, self.support, strict=True))


def nan_to_none(value: Any) -> Any:
    """For JSON: None in place of a number that is not finite; lists, of any depth, entry by entry."""
    if isinstance(value, list):
        return [nan_to_none(item) for item in value]
    return value if math.isfinite(value) else None


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Batches,
    class_names: Sequence[str],
    device: torch.device,
    ranks: Ranks = ALONE,
    *,
    retrieval: bool = False,
) -> Evaluation:
    """Run the model, in eval mode, over all batches. `model` gives (logits (n, C), embeddings (n, k, d)).

    The ranks' batches are parts of one split: every rank gets the figures of the whole. With `retrieval` all embeddings
    are held in memory at once, and compared.
    """
    training = model.training
    model.eval()
    outputs = []
    for images, targets in batches:
        logits, embeddings = model(images.to(device, non_blocking=True))
        compared = embeddings.float().cpu() if retrieval else torch.empty(0)
        outputs.append((logits.float().cpu(), targets.cpu(), compared))
    model.train(training)
    every = [batch for part in ranks.all_gather(outputs) for batch in part]
    logits, targets, embeddings = (torch.cat(column) for column in zip(*every, strict=True))
    evaluation = evaluation_from_logits(logits, targets, class_names)
    if not retrieval:
        return evaluation
    return replace(evaluation, retrieval=retrieval_metrics(embeddings.to(device), targets.to(device)))


def evaluation_from_logits(logits: Tensor, targets: Tensor, class_names: Sequence[str]) -> Evaluation:
    """The figures of logits (n, C), or log-probabilities, that are there already; targets (n,)."""
    classes, probabilities = (
        len(class_names),
        logits.softmax(1),
    )  # logits that all lie in [0, 1] would be taken for such
    confusion = multiclass_confusion_matrix(logits, targets, classes, validate_args=False).numpy()
    ece = multiclass_calibration_error(probabilities, targets, classes, n_bins=15, validate_args=False)
    return Evaluation(
        class_names=tuple(class_names),
        confusion=confusion,
        support=tuple(confusion.sum(axis=1).tolist()),
        nll=float(nn.functional.cross_entropy(logits.double(), targets)),
        ece=float(ece),
        **{name: values.tolist() for name, values in classification_metrics(confusion).items()},
    )


def percent(value: float | None) -> str:
    """Percent with two decimals; a dash for a figure that is not defined."""
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.2f}"
