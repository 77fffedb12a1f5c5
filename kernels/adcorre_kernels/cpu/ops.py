"""The steps as `torch.library` operators: opaque to `torch.compile`, without an autograd formula of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from adcorre_kernels.cpu import host

_LIBRARY = torch.library.Library("adcorre_cpu", "DEF")
_TAGS = (torch.Tag.pt2_compliant_tag,)


def _register(schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Below every wrapper (autocast, autograd). A third of what `torch.library.custom_op` costs a call."""
    name = schema.partition("(")[0]
    _LIBRARY.define(schema, tags=_TAGS)
    _LIBRARY.impl(name, implementation, "CPU")
    torch.library.register_fake(f"adcorre_cpu::{name}", fake, lib=_LIBRARY)
    return getattr(torch.ops.adcorre_cpu, name).default


def _fake_statistics(x: Tensor, targets: Tensor, num_classes: int, *options: Any) -> Tensor:
    _, k, d = x.shape
    dtype = torch.promote_types(x.dtype, torch.float32)
    return x.new_empty(num_classes * k * (2 * d + 1) + 2 * num_classes + 1, dtype=dtype)


def _fake_terms(flat: Tensor, attention: Tensor, k: int, d: int, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    table = (attention.shape[0], k, d)
    return flat.new_empty(4), flat.new_empty(table), flat.new_empty(table), flat.new_empty(())


def _fake_logits_sums(logits: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return logits.new_empty((2, logits.shape[1]), dtype=torch.int64), logits.new_empty(2, dtype=dtype)


def _fake_gradient(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


_CROSS_ENTROPY = "Tensor? ce_weight, Tensor? adjustment, float label_smoothing, int ignore_index"

statistics = _register(
    "statistics(Tensor x, Tensor targets, SymInt num_classes, int ignore_index, float embedding_target) -> Tensor",
    host.statistics,
    _fake_statistics,
)
terms = _register(
    "terms(Tensor flat, Tensor attention, SymInt k, SymInt d, float? between_target, float mean_target, "
    "float embedding_target) -> (Tensor, Tensor, Tensor, Tensor)",
    host.terms,
    _fake_terms,
)
embedding_gradient = _register(
    "embedding_gradient(Tensor x, Tensor targets, Tensor upstream, Tensor feature, Tensor mean, "
    "Tensor embedding_scale, int ignore_index, float embedding_target) -> Tensor",
    host.embedding_gradient,
    _fake_gradient,
)
logits_sums = _register(
    f"logits_sums(Tensor logits, Tensor targets, {_CROSS_ENTROPY}) -> (Tensor, Tensor)",
    host.logits_sums,
    _fake_logits_sums,
)
logits_gradient = _register(
    f"logits_gradient(Tensor logits, Tensor targets, Tensor upstream, {_CROSS_ENTROPY}) -> Tensor",
    host.logits_gradient,
    _fake_gradient,
)
