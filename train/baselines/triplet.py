"""Triplet loss: Schroff, Kalenichenko, Philbin, "FaceNet: a unified embedding for face recognition and clustering",
CVPR 2015; by pytorch-metric-learning."""

from typing import Any

from torch import Tensor

from train.baselines.base import Baseline


class TripletLoss(Baseline):
    """Mean of max(0, |a - p|^2 - |a - n|^2 + margin) over the semi-hard triplets of the batch, beside cross-entropy.

    a, p and n are concatenated embeddings, L2-normalized as a whole; semi-hard: the negative is farther than the
    positive, by less than the margin. No such triplet: 0.
    """

    margin = 0.2

    def __init__(self, num_classes: int, k: int, d: int, weight: float | None = None, **settings: Any) -> None:
        super().__init__(num_classes, k, d, weight, **settings)
        from pytorch_metric_learning import distances, losses, miners

        distance = distances.LpDistance(normalize_embeddings=True, p=2, power=2)
        self.mine = miners.TripletMarginMiner(margin=self.margin, type_of_triplets="semihard", distance=distance)
        self.triplet = losses.TripletMarginLoss(margin=self.margin, distance=distance)

    def term(self, x: Tensor, targets: Tensor) -> Tensor:
        loss: Tensor = self.triplet(x, targets, self.mine(x, targets))
        return loss
