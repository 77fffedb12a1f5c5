"""The five steps, and FD over all pairs, as `torch.library` operators.

They are opaque to `torch.compile`, which could not fuse them further. They have no autograd formula: `adcorre` wraps
them in autograd functions. They are registered below autocast and autograd, so that half-precision inputs are not
converted and statistics stay float32.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from adcorre_kernels.gpu import launch, loss, pair_launch
from adcorre_kernels.settings import Settings

_LIBRARY = torch.library.Library("adcorre_kernels", "DEF")
_TAGS = (torch.Tag.pt2_compliant_tag,)


def _on_tensor_device(implementation: Callable[..., Any]) -> Callable[..., Any]:
    """Make the first argument's device current: Triton launches on the current device."""

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
    _LIBRARY.impl(name, _on_tensor_device(implementation), "CompositeExplicitAutograd")
    torch.library.register_fake(f"adcorre_kernels::{name}", fake, lib=_LIBRARY)


def _fake_statistics(x: Tensor, targets: Tensor, num_classes: int, *options: Any) -> Tensor:
    _, k, d = x.shape
    return x.new_empty(num_classes * k * (2 * d + 1) + 2 * num_classes + 1, dtype=torch.float32)


def _fake_terms(flat: Tensor, attention: Tensor, k: int, d: int, *_: Any) -> tuple[Tensor, Tensor]:
    return flat.new_empty(4), flat.new_empty(2 * attention.shape[0] * k * d + 1)


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
    "float embedding_target) -> (Tensor, Tensor)",
    launch.terms,
    _fake_terms,
)
_register(
    "gradient(Tensor x, Tensor targets, Tensor? fd, Tensor? md, Tensor? ed, Tensor feature, Tensor mean, "
    "Tensor embedding_scale, int ignore_index, float embedding_target) -> Tensor",
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
_SETTINGS = (
    "int ignore_index, float label_smoothing, float between_target, float mean_target, float embedding_target, "
    "float fd_weight, float md_weight, float ed_weight, bool naive"
)
_SAMPLES = "Tensor targets, Tensor? ce_weight, Tensor? adjustment"
_UPSTREAM = "Tensor? fd, Tensor? md, Tensor? ed, Tensor tables, bool needs_x, SymInt num_classes"


def _fake_loss(x: Tensor, logits: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    num_classes, dtype = logits.shape[1], torch.promote_types(logits.dtype, torch.float32)
    tables = x.new_empty(2 * num_classes * x.shape[1] * x.shape[2] + 2, dtype=torch.float32)
    return logits.new_empty((), dtype=dtype), logits.new_empty(3 * num_classes + 7, dtype=dtype), tables


def _fake_loss_from_sums(flat: Tensor, ce: Tensor, attention: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    num_classes, (k, d) = attention.shape[0], rest[3:5]
    return ce.new_empty(()), ce.new_empty(5 + num_classes), flat.new_empty(2 * num_classes * k * d + 2)


def _sample_terms(x: Tensor, targets: Tensor, attention: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    own = (None, None, None, 0.0, False, False)
    _, values, tables = loss.forward(x, None, targets, None, None, attention, *own, settings)
    return values, tables


def _fake_sample_terms(x: Tensor, targets: Tensor, attention: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    size = 2 * attention.shape[0] * x.shape[1] * x.shape[2] + 1
    return x.new_empty(4, dtype=torch.float32), x.new_empty(size, dtype=torch.float32)


def _gradients(x: Tensor, *given: Any) -> list[Tensor]:
    return [one for one in loss.backward(x, *given) if one is not None]


def _with_settings(function: Callable[..., Any]) -> Callable[..., Any]:
    """The operator's last arguments are the fields of `Settings`."""
    count = len(Settings._fields)
    return wraps(function)(lambda *given: function(*given[:-count], Settings(*given[-count:])))


def _fake_gradients(x: Tensor, logits: Tensor | None, *rest: Any) -> list[Tensor]:
    expected = (logits, x if rest[7] else None)
    return [torch.empty_like(one, memory_format=torch.contiguous_format) for one in expected if one is not None]


_register(
    f"loss(Tensor x, Tensor logits, {_SAMPLES}, Tensor? attention, Tensor(a!)? counts, Tensor(b!)? position, "
    f"Tensor? lambd_tensor, float lambd, bool count, bool record, {_SETTINGS}) -> (Tensor, Tensor, Tensor)",
    _with_settings(loss.forward),
    _fake_loss,
)
_register(
    "loss_from_sums(Tensor flat, Tensor ce, Tensor attention, Tensor? lambd_tensor, float lambd, float factor, "
    f"SymInt k, SymInt d, {_SETTINGS}) -> (Tensor, Tensor, Tensor)",
    _with_settings(loss.from_sums),
    _fake_loss_from_sums,
)
_register(
    f"sample_terms(Tensor x, Tensor targets, Tensor attention, {_SETTINGS}) -> (Tensor, Tensor)",
    _with_settings(_sample_terms),
    _fake_sample_terms,
)
_register(
    f"gradients(Tensor x, Tensor? logits, {_SAMPLES}, {_UPSTREAM}, {_SETTINGS}) -> Tensor[]",
    _with_settings(_gradients),
    _fake_gradients,
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
logits_sums = torch.ops.adcorre_kernels.logits_sums.default
logits_gradient = torch.ops.adcorre_kernels.logits_gradient.default
pair_values = torch.ops.adcorre_kernels.pair_values.default
pair_gradient = torch.ops.adcorre_kernels.pair_gradient.default


def terms(flat: Tensor, attention: Tensor, k: int, d: int, *targets: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`launch.terms`, returning values, G, H and 2 / (n k^2) ()."""
    values, tables = torch.ops.adcorre_kernels.terms.default(flat, attention, k, d, *targets)
    return values, *split_tables(tables, attention.shape[0], k, d)


def split_tables(tables: Tensor, num_classes: int, k: int, d: int) -> tuple[Tensor, Tensor, Tensor]:
    """G and H (C, k, d), and 2 / (n k^2) ()."""
    feature, mean = tables[: 2 * num_classes * k * d].view(2, num_classes, k, d).unbind()
    return feature, mean, tables[2 * num_classes * k * d]


def gradient(x: Tensor, targets: Tensor, upstream: Tensor, *rest: Any) -> Tensor:
    """`launch.gradient` with the upstream gradients (4,) of the values of `terms`."""
    fd, md, ed, _ = upstream.unbind()
    return torch.ops.adcorre_kernels.gradient.default(x, targets, fd, md, ed, *rest)


def _direct(operator: Any, implementation: Callable[..., Any]) -> Callable[..., Any]:
    """The implementation in plain eager mode, else the operator: a dispatch costs as much as a launch.

    The last argument is a `Settings`.
    """
    run = _on_tensor_device(implementation)

    def call(x: Tensor, *rest: Any) -> Any:
        if (
            not torch.compiler.is_compiling()
            and type(x) in (Tensor, torch.nn.Parameter)
            and not torch._C._len_torch_dispatch_stack()
            and not torch._C._are_functorch_transforms_active()
        ):
            return run(x, *rest)
        return operator(x, *rest[:-1], *rest[-1])

    return call


whole_loss = _direct(torch.ops.adcorre_kernels.loss.default, loss.forward)
loss_from_sums = _direct(torch.ops.adcorre_kernels.loss_from_sums.default, loss.from_sums)
sample_terms = _direct(torch.ops.adcorre_kernels.sample_terms.default, _sample_terms)
gradients = _direct(torch.ops.adcorre_kernels.gradients.default, _gradients)
