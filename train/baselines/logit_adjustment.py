"""Logit-adjusted cross-entropy: Menon, Jayasumana, Rawat, Jain, Veit, Kumar, "Long-tail learning via logit adjustment",
ICLR 2021."""

import torch
from torch import Tensor


def logit_adjustment(counts: Tensor, tau: float = 1.0) -> Tensor:
    """(C,) float32, `logit_adjustment` of `AdCorreLoss`: tau * log of each class's share of the training set.

    A class without samples counts as one of a single sample.
    """
    n = counts.clamp(min=1).double()
    return (tau * torch.log(n / n.sum())).float()
