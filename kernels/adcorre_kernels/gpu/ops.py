"""The five steps, and FD over all pairs, as `torch.library` operators.

They are opaque to `torch.compile`: nothing in them could be fused with more.
They carry no autograd formula: `adcorre` puts functions around them that know which gradients exist. Registered below
every wrapper (autocast, autograd), so that half precision goes in as it comes and statistics stay float32.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from adcorre_kernels.gpu import launch, pair_launch

_LIBRARY = torch.library.Library("adcorre_kernels", "DEF")
_TAGS = (torch.Tag.pt2_compliant_tag,)


def _on_its_device(implementation: Callable[..., Any]) -> Callable[..., Any]:
    """Triton launches on the current device, whichever the tensors are on."""

    @wraps(implementation)
    def run(first: Tensor, *rest: Any) -> Any:
        if first.is_cuda and first.device.index != torch.cuda.current_device():
            with torch.cuda.device(first.device):
                return implementation(first, *rest)
        return implementation(first, *rest)

    return run


def _register(schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> None:
    name = schema.partition("(")[0]
    _LIBRARY.define(schema, tags=_TAGS)
    _LIBRARY.impl(name, _on_its_device(implementation), "CompositeExplicitAutograd")
    torch.library.register_fake(f"adcorre_kernels::{name}", fake, lib=_LIBRARY)


def _fake_statistics(x: Tensor, targets: Tensor, num_classes: int, *options: Any) -> Tensor:
    _, k, d = x.shape
    return x.new_empty(num_classes * k * (2 * d + 1) + 2 * num_classes + 1, dtype=torch.float32)


def _fake_terms(flat: Tensor, attention: Tensor, k: int, d: int, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    table = (attention.shape[0], k, d)
    return flat.new_empty(4), flat.new_empty(table), flat.new_empty(table), flat.new_empty(())


def _fake_logits_sums(logits: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return logits.new_empty((2, logits.shape[1]), dtype=torch.int64), logits.new_empty(2, dtype=dtype)


def _fake_gradient(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _fake_pair_values(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(2, dtype=torch.float32)


def _fake_pair_gradient(x: Tensor, *options: Any) -> Tensor:
    row_start, row_stop = options[-2:]
    return x.new_empty((row_stop - row_start, *x.shape[1:]), dtype=torch.float32)


_register(
    "statistics(Tensor x, Tensor targets, SymInt num_classes, int ignore_index, float embedding_target) -> Tensor",
    launch.statistics,
    _fake_statistics,
)
_register(
    "terms(Tensor flat, Tensor attention, SymInt k, SymInt d, float? between_target, float mean_target, "
    "float embedding_target) -> (Tensor, Tensor, Tensor, Tensor)",
    launch.terms,
    _fake_terms,
)
_register(
    "gradient(Tensor x, Tensor targets, Tensor upstream, Tensor feature, Tensor mean, Tensor embedding_scale, "
    "int ignore_index, float embedding_target) -> Tensor",
    launch.gradient,
    _fake_gradient,
)
_CROSS_ENTROPY = "Tensor? ce_weight, Tensor? adjustment, float label_smoothing, int ignore_index"
_register(
    f"logits_sums(Tensor logits, Tensor targets, {_CROSS_ENTROPY}) -> (Tensor, Tensor)",
    launch.logits_sums,
    _fake_logits_sums,
)
_register(
    f"logits_gradient(Tensor logits, Tensor targets, Tensor upstream, {_CROSS_ENTROPY}) -> Tensor",
    launch.logits_gradient,
    _fake_gradient,
)
_PAIRS = "float between_target, int ignore_index, str precision, SymInt row_start, SymInt row_stop"
_register(
    f"pair_values(Tensor x, Tensor targets, Tensor attention, {_PAIRS}) -> Tensor",
    pair_launch.pair_values,
    _fake_pair_values,
)
_register(
    f"pair_gradient(Tensor x, Tensor targets, Tensor attention, Tensor scale, {_PAIRS}) -> Tensor",
    pair_launch.pair_gradient,
    _fake_pair_gradient,
)

statistics = torch.ops.adcorre_kernels.statistics.default
terms = torch.ops.adcorre_kernels.terms.default
gradient = torch.ops.adcorre_kernels.gradient.default
logits_sums = torch.ops.adcorre_kernels.logits_sums.default
logits_gradient = torch.ops.adcorre_kernels.logits_gradient.default
pair_values = torch.ops.adcorre_kernels.pair_values.default
pair_gradient = torch.ops.adcorre_kernels.pair_gradient.default
