"""Class-balanced cross-entropy: Cui, Jia, Lin, Song, Belongie, "Class-balanced loss based on effective number of
samples", CVPR 2019."""

import torch
from torch import Tensor


def effective_number_weights(counts: Tensor, beta: float = 0.9999) -> Tensor:
    """(C,) float32 class weights (1 - beta) / (1 - beta^n_c), scaled to the sum C; `ce_weight` of `AdCorreLoss`.

    A class without training samples counts as one of a single sample. beta = 0 gives equal weights, beta -> 1 those of
    the inverse frequency.
    """
    n = counts.clamp(min=1).double()
    weights = (1 - beta) / -torch.expm1(n * torch.log(torch.tensor(beta, dtype=torch.float64)))
    return (weights * len(weights) / weights.sum()).float()
