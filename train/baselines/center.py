"""Center loss: Wen, Zhang, Li, Qiao, "A discriminative feature learning approach for deep face recognition", 2016."""

from torch import Tensor

from train.baselines.base import Centers


class CenterLoss(Centers):
    """1/2 mean_i |x_i - c_{y_i}|^2 beside cross-entropy.

    The paper adds both over the batch, here both are means. After a batch each centre moves by
    c_j <- c_j - alpha * sum_{y_i = j} (c_j - x_i) / (1 + n_j), the paper's update; alpha = 0.5 as there.
    """

    default_weight = 0.003

    def term(self, x: Tensor, targets: Tensor) -> Tensor:
        value = (x - self.centers.to(x.dtype)[targets]).square().sum(1).mean() / 2
        self.move(self.toward_members(x, targets))
        return value
