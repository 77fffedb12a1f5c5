"""The torch backend: streamed on a CPU, whole-tensor operations elsewhere. Neither has an n x n matrix."""

from __future__ import annotations

from torch import Tensor

from adcorre import statistics as class_statistics
from adcorre.logits import logits_gradient, logits_sums
from adcorre.pairs import pair_gradient, pair_values
from adcorre.plain import plain_gradient, plain_statistics
from adcorre.statistics import FlatStatistics, Tables, Values
from adcorre.streaming import streaming_gradient, streaming_statistics

__all__ = [
    "embedding_gradient",
    "logits_gradient",
    "logits_sums",
    "pair_gradient",
    "pair_values",
    "statistics",
    "terms",
]


def statistics(x: Tensor, targets: Tensor, num_classes: int, ignore_index: int, embedding_target: float) -> Tensor:
    """`FlatStatistics.flat` of x (n, k, d) with targets (n,)."""
    one_pass = streaming_statistics if x.device.type == "cpu" else plain_statistics
    return one_pass(x, targets, num_classes, ignore_index, embedding_target)


def terms(
    flat: Tensor,
    attention: Tensor,
    k: int,
    d: int,
    between_target: float | None,
    mean_target: float,
    embedding_target: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`Values` as one tensor (4,), and `Tables`."""
    statistics = FlatStatistics(flat, attention.shape[0], k, d, embedding_target)
    values, tables = class_statistics.terms(statistics, attention, between_target, mean_target)
    return values, *tables


def embedding_gradient(
    x: Tensor,
    targets: Tensor,
    upstream: Tensor,
    feature: Tensor,
    mean: Tensor,
    embedding_scale: Tensor,
    ignore_index: int,
    embedding_target: float,
) -> Tensor:
    """dL/dx, contiguous and in x's dtype; `upstream` (4,) is the gradient of `Values` (nfd's is not used)."""
    of = Values(*upstream.unbind())
    tables = Tables(of.fd * feature, of.md * mean, of.ed * embedding_scale)
    one_pass = streaming_gradient if x.device.type == "cpu" else plain_gradient
    return one_pass(x, targets, *tables, ignore_index, embedding_target)
