"""Logit-adjusted cross-entropy: Menon, Jayasumana, Rawat, Jain, Veit, Kumar, "Long-tail learning via logit adjustment",
ICLR 2021."""

from typing import Any

import torch
from torch import Tensor

from adcorre import AdCorreLoss, AdCorreOutput, checks
from adcorre.backends import Options
from adcorre.distributed import BatchSums


def logit_adjustment(counts: Tensor, tau: float = 1.0) -> Tensor:
    """(C,) float32: tau * log of each class's share of the training set (a class without samples counts as one)."""
    n = counts.clamp(min=1).double()
    return (tau * torch.log(n / n.sum())).float()


class LogitAdjustedLoss(AdCorreLoss):
    """`AdCorreLoss` whose cross-entropy is that of logits + adjustment (C,).

    The classifier's predictions, in the attention map as at test time, are those of the logits themselves. Exact over
    virtual batches and processes, as `AdCorreLoss` is.
    """

    adjustment: Tensor

    def __init__(self, num_classes: int, adjustment: Tensor, **settings: Any) -> None:
        super().__init__(num_classes, **settings)
        if self.backend == "reference":
            raise ValueError('a logit adjustment needs a backend other than "reference"')
        self.register_buffer("adjustment", adjustment)

    def forward(
        self, logits: Tensor, embeddings: Tensor, targets: Tensor, *, lambd: float | Tensor | None = None
    ) -> AdCorreOutput:
        """As `AdCorreLoss.forward`."""
        return self._of_the_group(logits, embeddings, targets, self.lambd if lambd is None else lambd)

    def _sums(self, logits: Tensor, embeddings: Tensor, targets: Tensor, options: Options) -> tuple[Tensor, BatchSums]:
        adjusted = logits.to(checks.at_least_float32(logits.dtype)) + self.adjustment
        ce_sum, sums = super()._sums(adjusted, embeddings, targets, options)
        return ce_sum, sums._replace(predictions=self.attention_map.count(logits, targets))
