"""Harder training splits made from the data that are there: redrawn labels, a long tail."""

import numpy as np

from train.data.base import FaceDataset, Labels, Subset, digest
from train.errors import UserError


class Relabelled(Subset):
    """All samples of another dataset, with other labels."""

    def __init__(self, parent: FaceDataset, labels: Labels) -> None:
        super().__init__(parent, np.arange(len(parent)), parent.split)
        self.labels = labels
        self.fingerprint = digest(parent.fingerprint, labels.tobytes())


def add_label_noise(faces: FaceDataset, share: float, seed: int) -> FaceDataset:
    """`share` of the samples with a label drawn anew, each class equally likely: some draw the one that they had."""
    rng = np.random.default_rng([seed, 1])
    chosen = rng.permutation(len(faces))[: round(share * len(faces))]
    labels = faces.labels.copy()
    labels[chosen] = rng.integers(0, len(faces.class_names), len(chosen))
    return Relabelled(faces, labels)


def subsample_long_tail(faces: FaceDataset, ratio: float, seed: int) -> FaceDataset:
    """At most n ratio^(-r / (C - 1)) samples, and one at least, of the class of rank r by size.

    n is the size of the largest class, of rank 0; C counts the classes that have samples. Raises UserError for a ratio
    below 1.
    """
    if ratio < 1:
        raise UserError(
            f"--long-tail {ratio:g}: expected 0 (off) or at least 1, the largest class's size over the last's"
        )
    counts = np.bincount(faces.labels, minlength=len(faces.class_names))
    ranked = [label for label in np.argsort(-counts, kind="stable") if counts[label]]
    order = np.random.default_rng([seed, 2]).permutation(len(faces))
    chosen = []
    for rank, label in enumerate(ranked):
        most = counts[ranked[0]] * ratio ** (-rank / max(1, len(ranked) - 1))
        chosen.append(order[faces.labels[order] == label][: max(1, round(most))])
    return Subset(faces, np.sort(np.concatenate(chosen)).astype(np.int64), faces.split)
