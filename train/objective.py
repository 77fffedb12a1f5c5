"""The loss of a run: Eq. 12, or what it is compared with."""

from typing import Any

import torch
from torch import Tensor

from adcorre import AdaptiveAttentionMap, AdCorreLoss, adcorre_terms
from train.baselines import WITH_EMBEDDINGS, effective_number_weights, logit_adjustment
from train.data import FaceDataset
from train.errors import UserError
from train.ranks import Ranks
from train.settings import LossSettings, ModelSettings, Settings

# Settings of AdCorreLoss, by the same names
OF_EVERY_OBJECTIVE = "window", "label_smoothing", "between_target", "mean_target", "embedding_target", "backend"


class FixedWeights(AdaptiveAttentionMap):
    """The same weight w for every class at every step; counts predictions for the log alone."""

    def __init__(self, num_classes: int, weight: float) -> None:
        super().__init__(num_classes, window=1)
        self.weight = weight

    def weights(self, counts: Tensor | None = None) -> Tensor:
        return torch.full_like(super().weights(counts), self.weight)


def check_objective(settings: Settings, ranks: Ranks) -> None:
    """UserError for settings of the loss that exclude each other."""
    loss = settings.loss
    several = ranks.world > 1 or settings.data.virtual_batch > 1
    if several and loss.backend == "reference":
        raise UserError("--backend reference does not support several processes or a virtual batch; use torch")
    if several and loss.objective in WITH_EMBEDDINGS:
        raise UserError(f"--objective {loss.objective} is defined on one batch of one process")
    if loss.objective in WITH_EMBEDDINGS and loss.logit_adjustment:
        raise UserError(f"--logit-adjustment is for --objective adcorre, not {loss.objective}")


def build_objective(
    settings: LossSettings, model: ModelSettings, train: FaceDataset, device: torch.device, ranks: Ranks
) -> AdCorreLoss:
    """The loss for the classes of `train`, on the device."""
    classes = len(train.class_names)
    counts = torch.bincount(torch.from_numpy(train.labels), minlength=classes)
    common: dict[str, Any] = {name: vars(settings)[name] for name in OF_EVERY_OBJECTIVE}
    common["ce_weight"] = _ce_weight(settings, train, counts)
    if settings.class_weight:
        common["attention_map"] = FixedWeights(classes, settings.class_weight)
    if settings.backend in ("triton", "numba"):  # whether it can run is otherwise found out in the first step
        try:
            probe = torch.zeros(2, model.k, model.d, device=device), torch.zeros(2, dtype=torch.long, device=device)
            weights = torch.ones(classes, device=device)
            adcorre_terms(*probe, weights, backend=settings.backend, pairs=settings.pairs)
        except ValueError as error:
            raise UserError(f"--backend {settings.backend}: {error}") from error
    if settings.objective in WITH_EMBEDDINGS:
        weight = settings.objective_weight or None
        return WITH_EMBEDDINGS[settings.objective](classes, model.k, model.d, weight, **common).to(device)
    common |= {name: vars(settings)[name] for name in ("lambd", "components", "pairs")}
    common["process_group"] = "world" if ranks.world > 1 else None
    if settings.logit_adjustment:
        common["logit_adjustment"] = logit_adjustment(counts, settings.logit_adjustment)
    return AdCorreLoss(classes, **common).to(device)


def _ce_weight(settings: LossSettings, train: FaceDataset, counts: Tensor) -> Tensor | None:
    classes = len(counts)
    if settings.ce_weight == "balanced":
        return len(train) / (classes * counts.clamp(min=1).float())
    if settings.ce_weight == "effective":
        return effective_number_weights(counts)
    if isinstance(settings.ce_weight, str):
        return None
    if len(settings.ce_weight) != classes:
        names = ", ".join(train.class_names)
        raise UserError(f"--ce-weight: expected {classes} numbers ({names}), got {len(settings.ce_weight)}")
    return torch.tensor(settings.ce_weight)
