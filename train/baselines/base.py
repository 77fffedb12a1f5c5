"""Cross-entropy plus one term of the embeddings: what the metric-learning baselines have in common."""

from typing import Any

import torch
from torch import Tensor

from adcorre import AdCorreLoss, AdCorreOutput


class Baseline(AdCorreLoss):
    """CE + weight * term(x, targets), x (n, k d) the concatenated embedding vectors in float32.

    Args:
        num_classes, k, d: the shapes of logits and embeddings.
        weight: of the term; None takes `default_weight`.
        settings: those of `AdCorreLoss` that concern cross-entropy.
    """

    default_weight = 1.0

    def __init__(self, num_classes: int, k: int, d: int, weight: float | None = None, **settings: Any) -> None:
        super().__init__(num_classes, components=(), **settings)
        self.k, self.d = k, d
        self.weight = self.default_weight if weight is None else weight

    def term(self, x: Tensor, targets: Tensor) -> Tensor:
        """The 0-d term of one batch; in training mode it may move the module's state."""
        raise NotImplementedError

    def forward(
        self, logits: Tensor, embeddings: Tensor, targets: Tensor, *, lambd: float | Tensor | None = None
    ) -> AdCorreOutput:
        """As `AdCorreLoss.forward`; every label in [0, C). `lambd`, Ad-Corre's, plays no part."""
        output = super().forward(logits, embeddings, targets)
        with torch.autocast(logits.device.type, enabled=False):
            term = self.term(embeddings.flatten(1).to(output.ce.dtype), targets.long())
        return output._replace(loss=output.loss + self.weight * term)

    def check_additive(self, over: str) -> None:
        """Always raises: a virtual batch or process group would add cross-entropy and leave out the term."""
        raise ValueError(f"{type(self).__name__} is defined on one batch: it does not support {over}")

    def extra_repr(self) -> str:
        return f"num_classes={self.num_classes}, weight={self.weight}"


class Centers(Baseline):
    """A baseline with one centre a class, moved by a rule of its own and not by the optimizer."""

    alpha = 0.5
    centers: Tensor

    def __init__(self, num_classes: int, k: int, d: int, weight: float | None = None, **settings: Any) -> None:
        super().__init__(num_classes, k, d, weight, **settings)
        # Its own generator: the same seed draws the same batches and augmentation under every objective.
        generator = torch.Generator().manual_seed(torch.initial_seed() % 2**63)
        self.register_buffer("centers", torch.randn(num_classes, k * d, generator=generator) / d**0.5)

    @torch.no_grad()
    def move(self, step: Tensor) -> None:
        """c <- c - alpha * step, in training mode."""
        if self.training:
            self.centers.sub_(self.alpha * step.to(self.centers.dtype))

    def toward_members(self, x: Tensor, targets: Tensor) -> Tensor:
        """(C, k d): sum over a class's samples of c - x, divided by 1 + their number."""
        members = torch.nn.functional.one_hot(targets, self.num_classes).to(x.dtype)
        count = members.sum(0)[:, None]
        return (count * self.centers.to(x.dtype) - members.T @ x.detach()) / (1 + count)
