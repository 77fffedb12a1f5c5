"""Predictions without a classifier: the nearest class mean."""

from __future__ import annotations

import torch
from torch import Tensor

from adcorre import checks
from adcorre.logits import count_predictions
from adcorre.module import StateModule
from adcorre.normalize import normalize
from adcorre.statistics import FlatStatistics

RATE = 0.2  # weight of a step's mean in the moving average


class ClassMeans(StateModule):
    """Exponential moving averages of the classes' mean directions, (C, k, d).

    Predictions use the averages of earlier steps, which do not include the predicted samples.

    Args:
        num_classes, k, d: C and the shape of an embedding.
    """

    means: Tensor
    seen: Tensor

    def __init__(self, num_classes: int, k: int, d: int) -> None:
        super().__init__()
        checks.check_positive_int("embedding_size: k", k)
        checks.check_positive_int("embedding_size: d", d)
        self.register_buffer("means", torch.zeros(num_classes, k, d))
        self.register_buffer("seen", torch.zeros(num_classes, dtype=torch.bool))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Reset every class."""
        self.means.zero_()
        self.seen.zero_()

    @torch.no_grad()
    def count(self, x: Tensor, targets: Tensor, ignore_index: int) -> Tensor:
        """(2, C) int64: for each class, samples of x (n, k, d) nearest to the mean of their class, and samples.

        Raises ValueError if the embeddings' shape is not (k, d).
        """
        num_classes, k, d = self.means.shape
        if tuple(x.shape[1:]) != (k, d):
            raise ValueError(f"embeddings: expected embedding_size {(k, d)}, got {tuple(x.shape[1:])}")
        with torch.autocast(x.device.type, enabled=False):
            z = normalize(x.to(checks.STATISTICS_DTYPE[x.dtype]))[1]
            directions = torch.nn.functional.normalize(self.means, dim=-1).to(z.dtype)
            scores = (z.flatten(1) @ directions.flatten(1).T).masked_fill(~self.seen, -torch.inf)
        # The extra column wins if no class has a mean yet: correlations are at least -k.
        scores = torch.cat((scores, scores.new_full((x.shape[0], 1), -2.0 * k)), 1)
        takes_part, _ = checks.label_masks(targets, num_classes, ignore_index)
        return count_predictions(scores, targets, takes_part)[:, :num_classes]

    @torch.no_grad()
    def record(self, flat: Tensor) -> None:
        """Update the means with a step's class sums, `FlatStatistics.flat`."""
        statistics = FlatStatistics(flat, *self.means.shape)
        count = statistics.count
        present = count > 0
        new = (statistics.direction_sum / count.clamp(min=1)[:, None, None]).to(self.means.dtype)
        moved = torch.where(self.seen[:, None, None], torch.lerp(self.means, new, RATE), new)
        self.means.copy_(torch.where(present[:, None, None], moved, self.means))
        self.seen.logical_or_(present)
