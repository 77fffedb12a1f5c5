"""Island loss: Cai, Meng, Khan, Li, O'Reilly, Tong, "Island loss for learning discriminative features in facial
expression recognition", FG 2018."""

import torch
from torch import Tensor

from train.baselines.base import Centers


def cosines(centers: Tensor) -> Tensor:
    """(C, C) cosines of the centres."""
    direction = torch.nn.functional.normalize(centers, dim=1)
    return direction @ direction.T


class IslandLoss(Centers):
    """Center loss + lambda_1 * sum_{j != k} (1 + cos(c_j, c_k)) beside cross-entropy.

    The second term has no gradient for the embeddings: it moves the centres, whose step is that of Center loss plus
    lambda_1 / (C - 1) times d/dc_j sum_{k != j} cos(c_j, c_k). Defaults as in the paper: weight 0.01, lambda_1 = 10.
    """

    default_weight = 0.01
    lambda_1 = 10.0

    def term(self, x: Tensor, targets: Tensor) -> Tensor:
        centers = self.centers.to(x.dtype)
        value = (x - centers[targets]).square().sum(1).mean() / 2
        cos = cosines(centers)
        apart = (1 + cos).sum() - (1 + cos.diagonal()).sum()
        self.move(self.toward_members(x, targets) + self.lambda_1 / max(1, self.num_classes - 1) * _slopes(centers))
        return value + self.lambda_1 * apart


def _slopes(centers: Tensor) -> Tensor:
    """(C, k d): d/dc_j sum_{k != j} cos(c_j, c_k)."""
    length = torch.linalg.vector_norm(centers, dim=1, keepdim=True)
    direction = centers / length
    others = direction.sum(0) - direction
    return (others - direction * (direction * others).sum(1, keepdim=True)) / length
