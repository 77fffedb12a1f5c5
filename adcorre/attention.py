"""The Adaptive Attention Map (Eqs. 7 and 8): a weight per class from the recent training predictions."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from adcorre import checks
from adcorre.logits import count_predictions
from adcorre.module import StateModule

EPSILON = 1e-6  # Eq. 7's 10e-7


@runtime_checkable
class AttentionMap(Protocol):
    """The interface of `AdCorreLoss(attention_map=...)`: an `nn.Module` with these two methods, its state in buffers.

    counts: (2, C) int64, for each class the number of samples predicted right and the number of samples in the step.
    """

    def record(self, counts: Tensor) -> None:
        """Update the state with one training step's counts, in place."""

    def weights(self, counts: Tensor | None = None) -> Tensor:
        """w, (C,) floating, from the current state; with `counts`, as after `record(counts)`, without recording it."""


def check_attention_map(name: str, value: object) -> None:
    """Raise TypeError unless `value` is a module with the methods of `AttentionMap`."""
    if not (isinstance(value, AttentionMap) and isinstance(value, nn.Module)):
        raise TypeError(
            f"{name}: expected a torch.nn.Module with the methods record and weights of adcorre.AttentionMap, "
            f"got {type(value).__name__}"
        )


class AdaptiveAttentionMap(StateModule):
    """w[a] = 1 - CONF[a, a] + 1e-6 (Eq. 7), CONF the row-normalized confusion matrix of the last `window` steps.

    The window is a ring buffer of counts, (window, 2, C): for each step, the number of samples of each class predicted
    right and the number of samples of the class. Eq. 7 needs no more of CONF. The buffer is part of the module's state:
    it is checkpointed and moves with `.to`. A class without samples in the window has CONF[a, a] = 0. Nothing here
    synchronizes with the device.

    Args:
        num_classes: C.
        window: the paper's delta, in steps; one call in training mode is one step, whatever its batch size.
        ignore_index: samples with this label are not counted.
    """

    counts: Tensor
    position: Tensor

    def __init__(self, num_classes: int, window: int = 5, *, ignore_index: int = -100) -> None:
        super().__init__()
        self.num_classes = num_classes = checks.check_positive_int("num_classes", num_classes)
        self.window = window = checks.check_positive_int("window", window)
        self.ignore_index = checks.check_ignore_index(ignore_index)
        self.register_buffer("counts", torch.zeros(window, 2, num_classes, dtype=torch.int64))
        self.register_buffer("position", torch.zeros(1, dtype=torch.int64))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Clear the window."""
        self.counts.zero_()
        self.position.zero_()

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return `weights()`; in training mode, after recording this batch's predictions.

        Args:
            logits: (n, C), any floating dtype; their argmax is the prediction.
            targets: (n,) class labels. A label outside [0, C) is not counted.

        Returns:
            w, (C,) float64.

        Raises:
            ValueError, TypeError: wrong shapes or dtypes.
        """
        checks.check_logits(logits, self.num_classes)
        targets = checks.check_targets(targets, logits.shape[0], logits.device, self.ignore_index)
        if self.training:
            self.record(self.count(logits, targets))
        return self.weights()

    @torch.no_grad()
    def count(self, logits: Tensor, targets: Tensor) -> Tensor:
        """(2, C) int64: for each class, samples predicted right and samples in the batch. Counts of two batches add."""
        targets = targets.long()
        return count_predictions(logits, targets, checks.label_masks(targets, self.num_classes, self.ignore_index)[0])

    @torch.no_grad()
    def record(self, counts: Tensor) -> None:
        """Replace the oldest step's counts by `counts` (2, C)."""
        self.counts.index_copy_(0, self.position, counts[None])
        self.position.add_(1).remainder_(self.window)

    @torch.no_grad()
    def latest(self) -> Tensor:
        """The newest step's counts, (2, C), as returned by `count`."""
        return self.counts.index_select(0, (self.position - 1) % self.window)[0]

    @torch.no_grad()
    def weights(self, counts: Tensor | None = None) -> Tensor:
        """w of Eq. 7, (C,) float64 (float32 on a device without float64), from the current window.

        With `counts` (2, C): from the window after one more step with these counts; the step is not recorded.
        """
        total = self.counts.sum(0)
        if counts is not None:
            total = total + counts - self.counts.index_select(0, self.position)[0]
        correct, seen = total.to(torch.float32 if total.device.type == "mps" else torch.float64)
        return 1 - correct / seen.clamp(min=1) + EPSILON

    def extra_repr(self) -> str:
        return f"num_classes={self.num_classes}, window={self.window}"
