"""What Ad-Corre is compared with, each with the interface of `adcorre.AdCorreLoss`.

An objective is called with (logits (n, C), embeddings (n, k, d), targets (n,)) and gives an `AdCorreOutput`: the
training loop, its logs and its figures are the same for all. The terms FD, MD and ED are reported and not trained on.
State, such as class centres, is in the module's `state_dict`.
"""

from train.baselines.base import Baseline
from train.baselines.center import CenterLoss
from train.baselines.effective_number import effective_number_weights
from train.baselines.island import IslandLoss
from train.baselines.logit_adjustment import logit_adjustment
from train.baselines.separate import SeparateLoss
from train.baselines.triplet import TripletLoss

# Of these the gradient of a part of a batch is unknown before the whole batch is.
WITH_EMBEDDINGS: dict[str, type[Baseline]] = {
    "center": CenterLoss,
    "island": IslandLoss,
    "separate": SeparateLoss,
    "triplet": TripletLoss,
}

__all__ = [
    "WITH_EMBEDDINGS",
    "Baseline",
    "CenterLoss",
    "IslandLoss",
    "SeparateLoss",
    "TripletLoss",
    "effective_number_weights",
    "logit_adjustment",
]
