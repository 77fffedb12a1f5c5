"""Class-balanced sampling: every class equally often in an epoch, independent of its size."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def balanced_order(
    labels: NDArray[np.int64] | Sequence[int], num_classes: int, seed: int, epoch: int
) -> NDArray[np.int64]:
    """(n,) int64 indices of an epoch as long as labels (n,), in which all classes that have samples are equally many.

    Within a class every sample occurs as often as every other, give or take one: a class larger than its share is drawn
    from without repetition, a smaller one is gone through several times. Which class and which of its samples get the
    remainders changes with the epoch. The order is a function of the arguments alone, so that all ranks agree on it.
    Raises ValueError for a label outside 0 to num_classes - 1.
    """
    labels = np.asarray(labels, dtype=np.int64)
    if labels.size and not (labels.min() >= 0 and labels.max() < num_classes):
        raise ValueError(f"labels are {labels.min()} to {labels.max()}; expected 0 to {num_classes - 1}")
    rng = np.random.default_rng([seed, epoch])
    present = rng.permutation(np.unique(labels))
    parts: list[np.ndarray] = []
    for place, label in enumerate(present):
        members = np.flatnonzero(labels == label)
        share = len(labels) // len(present) + (place < len(labels) % len(present))
        rounds, rest = divmod(share, len(members))
        parts += [np.tile(members, rounds), rng.permutation(members)[:rest]]
    return rng.permutation(np.concatenate(parts)) if parts else np.empty(0, np.int64)
