"""The steps as `torch.library` operators."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from adcorre_kernels.cpu import host, loss
from adcorre_kernels.operators import Operators, fake_gradient

_OPERATORS = Operators("adcorre_cpu", "CPU")


def _fake_terms(flat: Tensor, attention: Tensor, k: int, d: int, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    table = (attention.shape[0], k, d)
    return flat.new_empty(4), flat.new_empty(table), flat.new_empty(table), flat.new_empty(())


statistics, logits_sums, logits_gradient = _OPERATORS.define_steps(
    host.statistics, host.logits_sums, host.logits_gradient
)
terms = _OPERATORS.define(
    "terms(Tensor flat, Tensor attention, SymInt k, SymInt d, float? between_target, float mean_target, "
    "float embedding_target) -> (Tensor, Tensor, Tensor, Tensor)",
    host.terms,
    _fake_terms,
)
embedding_gradient = _OPERATORS.define(
    "embedding_gradient(Tensor x, Tensor targets, Tensor upstream, Tensor feature, Tensor mean, "
    "Tensor embedding_scale, int ignore_index, float embedding_target) -> Tensor",
    host.embedding_gradient,
    fake_gradient,
)
whole_loss, loss_from_sums, sample_terms, gradients = _OPERATORS.define_fused(
    loss.forward, loss.from_sums, loss.sample_terms, loss.gradients, (8 * loss.SCALES, 8 * loss.SCALES)
)
