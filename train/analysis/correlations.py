"""Correlations within and between classes over a whole split, in linear time, from its class statistics.

With S[a, l] the sum of class a's centred and normalized vectors l, the mean correlation of a sample of class a with one
of class b is S[a, l] . S[b, l] / (n_a n_b), and within a class the pairs of a sample with itself are taken out.
"""

import numpy as np
from numpy.typing import NDArray

from adcorre import ClassStatistics
from train.analysis.intervals import share

Matrix = NDArray[np.float64]


def sample_correlations(statistics: ClassStatistics) -> Matrix:
    """(C, C): the mean correlation, over k and all pairs, of two different samples of classes a and b.

    NaN where there is no such pair: a class without samples, or with one against itself.
    """
    s = statistics.direction_sum.double().cpu().numpy()
    count = statistics.count.double().cpu().numpy()
    square_sum = statistics.square_sum.double().cpu().numpy()
    total = np.einsum("ald,bld->ab", s, s) - np.diag(square_sum)
    pairs = np.outer(count, count) - np.diag(count)
    return share(total, statistics.k * pairs)


def mean_correlations(statistics: ClassStatistics) -> Matrix:
    """(C, C): the correlation of the mean embeddings of classes a and b, averaged over k. NaN for an absent class."""
    m = statistics.centred_sum.double().cpu().numpy()
    length = np.linalg.norm(m, axis=-1, keepdims=True)
    direction = np.divide(m, length, out=np.zeros_like(m), where=length > 0)
    present = (statistics.count > 0).cpu().numpy()
    return np.where(np.outer(present, present), np.einsum("ald,bld->ab", direction, direction) / statistics.k, np.nan)


def within_and_between(statistics: ClassStatistics) -> tuple[float, float]:
    """The mean correlation of all pairs of one class, and of all pairs of different classes."""
    s = statistics.direction_sum.double().cpu().numpy()
    count = statistics.count.double().cpu().numpy()
    own = float(np.einsum("ald,ald->", s, s))
    every = float(np.square(s.sum(0)).sum())
    pairs_within = float((count * (count - 1)).sum())
    pairs_between = float(count.sum() ** 2 - np.square(count).sum())
    within = (own - float(statistics.square_sum.sum())) / (statistics.k * pairs_within) if pairs_within else np.nan
    between = (every - own) / (statistics.k * pairs_between) if pairs_between else np.nan
    return within, between
