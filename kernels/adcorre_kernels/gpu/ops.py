"""The five steps, and FD over all pairs, as `torch.library` operators."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from adcorre_kernels.gpu import launch, loss, pair_launch
from adcorre_kernels.operators import Operators, fake_gradient
from adcorre_kernels.settings import Settings


def _on_tensor_device(implementation: Callable[..., Any]) -> Callable[..., Any]:
    """Make the first argument's device current: Triton launches on the current device."""

    @wraps(implementation)
    def run(first: Tensor, *rest: Any) -> Any:
        if first.is_cuda and first.device.index != torch.cuda.current_device():
            with torch.cuda.device(first.device):
                return implementation(first, *rest)
        return implementation(first, *rest)

    return run


def _fake_terms(flat: Tensor, attention: Tensor, k: int, d: int, *_: Any) -> tuple[Tensor, Tensor]:
    return flat.new_empty(4), flat.new_empty(2 * attention.shape[0] * k * d + 1)


def _fake_pair_values(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(2, dtype=torch.float32)


def _fake_pair_gradient(x: Tensor, *options: Any) -> Tensor:
    row_start, row_stop = options[-2:]
    return x.new_empty((row_stop - row_start, *x.shape[1:]), dtype=torch.float32)


def _sample_terms(x: Tensor, targets: Tensor, attention: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    own = (None, None, None, 0.0, False, False)
    _, values, tables = loss.forward(x, None, targets, None, None, attention, *own, settings)
    return values, tables


def _gradients(x: Tensor, *given: Any) -> list[Tensor]:
    return [one for one in loss.backward(x, *given) if one is not None]


_OPERATORS = Operators("adcorre_kernels", "CompositeExplicitAutograd", _on_tensor_device)
_PAIRS = "float between_target, int ignore_index, str precision, SymInt row_start, SymInt row_stop"

statistics, logits_sums, logits_gradient = _OPERATORS.define_steps(
    launch.statistics, launch.logits_sums, launch.logits_gradient
)
_terms = _OPERATORS.define(
    "terms(Tensor flat, Tensor attention, SymInt k, SymInt d, float? between_target, float mean_target, "
    "float embedding_target) -> (Tensor, Tensor)",
    launch.terms,
    _fake_terms,
)
_gradient = _OPERATORS.define(
    "gradient(Tensor x, Tensor targets, Tensor? fd, Tensor? md, Tensor? ed, Tensor feature, Tensor mean, "
    "Tensor embedding_scale, int ignore_index, float embedding_target) -> Tensor",
    launch.gradient,
    fake_gradient,
)
pair_values = _OPERATORS.define(
    f"pair_values(Tensor x, Tensor targets, Tensor attention, {_PAIRS}) -> Tensor",
    pair_launch.pair_values,
    _fake_pair_values,
)
pair_gradient = _OPERATORS.define(
    f"pair_gradient(Tensor x, Tensor targets, Tensor attention, Tensor scale, {_PAIRS}) -> Tensor",
    pair_launch.pair_gradient,
    _fake_pair_gradient,
)
whole_loss, loss_from_sums, sample_terms, gradients = _OPERATORS.define_fused(
    loss.forward, loss.from_sums, _sample_terms, _gradients, (8, 4)
)


def terms(flat: Tensor, attention: Tensor, k: int, d: int, *targets: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`launch.terms`, returning values, G, H and 2 / (n k^2) ()."""
    values, tables = _terms(flat, attention, k, d, *targets)
    return values, *split_tables(tables, attention.shape[0], k, d)


def split_tables(tables: Tensor, num_classes: int, k: int, d: int) -> tuple[Tensor, Tensor, Tensor]:
    """G and H (C, k, d), and 2 / (n k^2) ()."""
    feature, mean = tables[: 2 * num_classes * k * d].view(2, num_classes, k, d).unbind()
    return feature, mean, tables[2 * num_classes * k * d]


def gradient(x: Tensor, targets: Tensor, upstream: Tensor, *rest: Any) -> Tensor:
    """`launch.gradient` with the upstream gradients (4,) of the values of `terms`."""
    fd, md, ed, _ = upstream.unbind()
    return _gradient(x, targets, fd, md, ed, *rest)
