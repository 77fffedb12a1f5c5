"""Retrieval metrics: how well nearest neighbours among embeddings share a class."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

METRICS = {"precision_at_1": "Precision at 1", "r_precision": "R-precision", "map_at_r": "MAP@R"}
QUERIES = 1024  # compared with all samples at once


@torch.no_grad()
def retrieval_metrics(
    embeddings: Tensor, labels: Tensor, similarity: Literal["correlation", "cosine"] = "correlation"
) -> dict[str, float]:
    """Precision at 1, R-precision and MAP@R, each sample a query against all others; means over queries, in [0, 1].

    A query's R is the number of other samples of its class. Queries whose R is 0 do not count; with none left every
    metric is NaN. Computed by pytorch-metric-learning's `AccuracyCalculator` with its own nearest-neighbour search.

    Args:
        embeddings: (n, d) or (n, k, d), floating, n at least 1; compared in float32.
        labels: (n,) integers, any values.
        similarity: mean over k of "correlation" (what the Ad-Corre loss compares) or "cosine" of the vectors.

    Raises:
        ValueError: shapes that do not fit, or another similarity.
    """
    from pytorch_metric_learning.distances import CosineSimilarity
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
    from pytorch_metric_learning.utils.inference import CustomKNN

    if embeddings.dim() not in (2, 3) or labels.shape != embeddings.shape[:1] or not len(labels):
        raise ValueError(
            "retrieval: expected embeddings (n, d) or (n, k, d) and labels (n,), n at least 1; "
            f"got {tuple(embeddings.shape)} and {tuple(labels.shape)}"
        )
    if similarity not in ("correlation", "cosine"):
        raise ValueError(f'similarity: expected "correlation" or "cosine", got {similarity!r}')
    x = embeddings.float()
    if similarity == "correlation":
        x = x - x.mean(-1, keepdim=True)
    x = torch.nn.functional.normalize(x, dim=-1).flatten(1)
    # The calculator compares labels in float32, which does not hold every integer.
    labels, counts = labels.unique(return_inverse=True, return_counts=True)[1:]
    calculator = AccuracyCalculator(
        include=("precision_at_1", "r_precision", "mean_average_precision_at_r"),
        k="max_bin_count",
        device=x.device,
        knn_func=CustomKNN(CosineSimilarity()),
    )
    total, queries = dict.fromkeys(METRICS, 0.0), 0
    for start in range(0, len(x), QUERIES):
        taken = int((counts[labels[start : start + QUERIES]] > 1).sum())
        if not taken:
            continue
        # The calculator expects queries to come first among the references.
        all_x, all_labels = x.roll(-start, 0), labels.roll(-start)
        size = min(QUERIES, len(x) - start)
        figures = calculator.get_accuracy(all_x[:size], all_labels[:size], all_x, all_labels, ref_includes_query=True)
        queries += taken
        for name in METRICS:
            total[name] += taken * figures["mean_average_precision_at_r" if name == "map_at_r" else name]
    return {name: value / queries if queries else float("nan") for name, value in total.items()}
