"""The truth: FD + MD + ED of labels that are mapped by hand, from the reference in float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from adcorre import adcorre_terms

NAMES = ("fd", "md", "ed")


def truth(
    x: Tensor,
    labels: Tensor,
    num_classes: int | None = None,
    attention: Tensor | None = None,
    weights: dict[str, float] | None = None,
    ignore_index: int = -100,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """The loss and dL/dx of x (n, k, d) or (n, d): with `num_classes` None, over the classes of the batch."""
    x = x.detach().double().requires_grad_()
    if num_classes is None:
        classes = sorted(set(labels.tolist()) - {ignore_index})
        labels = torch.tensor([classes.index(label) if label in classes else -100 for label in labels.tolist()])
        num_classes, ignore_index = max(1, len(classes)), -100
    w = torch.full((num_classes,), 0.5, dtype=torch.float64) if attention is None else attention.double()
    simplex = -1 / max(1, num_classes - 1)
    options = {name: simplex if value == "simplex" else value for name, value in options.items()}
    terms = adcorre_terms(x, labels.long(), w, backend="reference", ignore_index=ignore_index, **options)
    weights = dict.fromkeys(NAMES, 1.0) if weights is None else weights
    loss = sum(weights.get(name, 0.0) * term for name, term in zip(NAMES, terms, strict=True))
    assert isinstance(loss, Tensor)
    return loss.detach(), torch.autograd.grad(loss, x)[0]
