"""Bootstrap intervals of a classifier's figures."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Figures = Mapping[str, NDArray[np.float64]]


def classification_metrics(confusion: NDArray[np.int64]) -> Figures:
    """Accuracy, average accuracy and macro F1 (...,), precision, recall and F1 (..., C) of counts (..., C, C).

    Rows are the true classes. A class without samples takes no part in the averages.
    """
    counts = confusion.astype(np.float64)
    right = np.diagonal(counts, axis1=-2, axis2=-1)
    true, predicted = counts.sum(-1), counts.sum(-2)
    recall, precision = share(right, true), share(right, predicted)
    f1 = share(2 * right, true + predicted)
    here = true > 0
    classes = here.sum(-1)
    return {
        "accuracy": right.sum(-1) / counts.sum((-2, -1)),
        "average_accuracy": np.where(here, recall, 0).sum(-1) / classes,
        "macro_f1": np.where(here, f1, 0).sum(-1) / classes,
        "precision": precision,
        "recall": recall,
        "f1": f1,
    }


def bootstrap(
    confusion: NDArray[np.int64], resamples: int, seed: int, level: float = 0.95
) -> dict[str, NDArray[np.float64]]:
    """Percentile intervals (2,) or (2, C) of `classification_metrics` over bootstrap resamples of the test set.

    Which samples are drawn matters only through the cell of the confusion matrix that each falls in: the resampled
    matrices are multinomial, and the interval does not know an order of samples. NaN where a figure is undefined in
    every resample.
    """
    classes = len(confusion)
    n = int(confusion.sum())
    cells = np.random.default_rng(seed).multinomial(n, confusion.ravel() / n, size=resamples)
    values_of = classification_metrics(cells.reshape(resamples, classes, classes))
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    return {name: _quantiles(values, tails) for name, values in values_of.items()}


def _quantiles(values: NDArray[np.float64], tails: NDArray[np.float64]) -> NDArray[np.float64]:
    defined = ~np.isnan(values).all(0)
    result = np.full((2, *values.shape[1:]), np.nan)
    result[..., defined] = np.nanquantile(values[..., defined], tails, axis=0)
    return result


def share(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    """part / whole, NaN where the whole is 0."""
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)
