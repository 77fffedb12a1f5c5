"""The steps as `torch.library` operators: opaque to `torch.compile`, without an autograd formula of their own."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from adcorre_kernels.cpu import host, loss
from adcorre_kernels.settings import Settings

_LIBRARY = torch.library.Library("adcorre_cpu", "DEF")
_TAGS = (torch.Tag.pt2_compliant_tag,)


def _register(schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Registered below autocast and autograd. A call costs a third of one through `torch.library.custom_op`."""
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


def _with_settings(function: Callable[..., Any]) -> Callable[..., Any]:
    """The operator's last arguments are the fields of `Settings`."""
    count = len(Settings._fields)
    return wraps(function)(lambda *given: function(*given[:-count], Settings(*given[-count:])))


def _fake_loss(x: Tensor, logits: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    classes, dtype = logits.shape[1], torch.promote_types(torch.promote_types(logits.dtype, x.dtype), torch.float32)
    tables = _fake_tables(x, classes, *x.shape[1:])
    return logits.new_empty((), dtype=dtype), logits.new_empty(3 * classes + 7, dtype=dtype), tables


def _fake_loss_from_sums(flat: Tensor, ce: Tensor, attention: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    classes, dtype = attention.shape[0], torch.promote_types(flat.dtype, ce.dtype)
    tables = _fake_tables(flat, classes, *rest[3:5])
    return ce.new_empty((), dtype=dtype), ce.new_empty(5 + classes, dtype=dtype), tables


def _fake_sample_terms(x: Tensor, targets: Tensor, attention: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(x.dtype, torch.float32)
    return x.new_empty(4, dtype=dtype), _fake_tables(x, attention.shape[0], *x.shape[1:])


def _fake_tables(x: Tensor, num_classes: int, k: int, d: int) -> Tensor:
    dtype = torch.promote_types(x.dtype, torch.float32)
    return x.new_empty(loss.tables_size(num_classes, k, d, dtype.itemsize), dtype=dtype)


def _fake_gradients(x: Tensor, logits: Tensor | None, *rest: Any) -> list[Tensor]:
    inputs = (logits, x if rest[7] else None)
    return [torch.empty_like(one, memory_format=torch.contiguous_format) for one in inputs if one is not None]


_SETTINGS = (
    "int ignore_index, float label_smoothing, float between_target, float mean_target, float embedding_target, "
    "float fd_weight, float md_weight, float ed_weight, bool naive"
)
_SAMPLES = "Tensor targets, Tensor? ce_weight, Tensor? adjustment"


def _direct(schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
    """An operator, or its implementation itself if nothing intercepts operators. The last argument is a `Settings`."""
    operator = _register(schema.replace(") -> ", f", {_SETTINGS}) -> ", 1), _with_settings(implementation), fake)

    def call(x: Tensor, *rest: Any) -> Any:
        if (
            not torch.compiler.is_compiling()
            and type(x) in (Tensor, torch.nn.Parameter)
            and not torch._C._len_torch_dispatch_stack()
            and not torch._C._are_functorch_transforms_active()
        ):
            return implementation(x, *rest)
        return operator(x, *rest[:-1], *rest[-1])

    return call


whole_loss = _direct(
    f"loss(Tensor x, Tensor logits, {_SAMPLES}, Tensor? attention, Tensor(a!)? counts, Tensor(b!)? position, "
    "Tensor? lambd_tensor, float lambd, bool count, bool record) -> (Tensor, Tensor, Tensor)",
    loss.forward,
    _fake_loss,
)
loss_from_sums = _direct(
    "loss_from_sums(Tensor flat, Tensor ce, Tensor attention, Tensor? lambd_tensor, float lambd, float factor, "
    "SymInt k, SymInt d) -> (Tensor, Tensor, Tensor)",
    loss.from_sums,
    _fake_loss_from_sums,
)
sample_terms = _direct(
    "sample_terms(Tensor x, Tensor targets, Tensor attention) -> (Tensor, Tensor)",
    loss.sample_terms,
    _fake_sample_terms,
)
gradients = _direct(
    f"gradients(Tensor x, Tensor? logits, {_SAMPLES}, Tensor? fd, Tensor? md, Tensor? ed, Tensor tables, bool needs_x, "
    "SymInt num_classes) -> Tensor[]",
    loss.gradients,
    _fake_gradients,
)
