"""Separate loss: Li, Lu, Li, Lu, "Separate loss for basic and compound facial expression recognition in the wild",
ACML 2019."""

import torch
from torch import Tensor

from train.baselines.base import Centers
from train.baselines.island import cosines


class SeparateLoss(Centers):
    """mean_i (1 - cos(x_i, c_{y_i})) + lambda_1 * mean_{j != k} (1 + cos(c_j, c_k)) beside cross-entropy.

    The cosine form of Center and Island loss, as the Ad-Corre paper describes it (Sec. II): the first term draws a
    class's samples to its centre, the second drives the centres apart. Weight, lambda_1 and the centres' step (the
    gradient, each class's samples counted as in Center loss) are choices made here.
    """

    lambda_1 = 1.0

    def term(self, x: Tensor, targets: Tensor) -> Tensor:
        centers = self.centers.to(x.dtype)
        value = self._intra(x, targets, centers).mean() + self.lambda_1 * self._inter(centers)
        if self.training:
            with torch.enable_grad():
                moving = centers.detach().requires_grad_()
                count = torch.bincount(targets, minlength=self.num_classes)
                pull = (self._intra(x.detach(), targets, moving) / (1 + count[targets])).sum()
                [step] = torch.autograd.grad(pull + self.lambda_1 * self._inter(moving), moving)
            self.move(step)
        return value

    def _intra(self, x: Tensor, targets: Tensor, centers: Tensor) -> Tensor:
        return 1 - torch.nn.functional.cosine_similarity(x, centers[targets], dim=1)

    def _inter(self, centers: Tensor) -> Tensor:
        pairs = 1 + cosines(centers)
        return (pairs.sum() - pairs.diagonal().sum()) / max(1, self.num_classes * (self.num_classes - 1))
