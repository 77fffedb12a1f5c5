"""The fused path through the kernels: one operator forward, one backward, one node of the graph."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adcorre.backends import Options, fast_apply, terms_supported, triton_kernels, without_double_backward
from adcorre_kernels import cpu

REMEMBERED_CALLS = 1024


class ResolvedCall(NamedTuple):
    """Resolved options, and the kernels' settings if the kernels compute every step, else None."""

    options: Options
    settings: Any


def resolve_call(
    calls: dict[Hashable, ResolvedCall],
    resolve: Callable[..., ResolvedCall],
    tensors: tuple[Tensor, ...],
    settings: tuple[Any, ...],
) -> ResolvedCall:
    """resolve(*tensors, *settings), which checks a call and reads no values, remembered in `calls`."""
    if torch.compiler.is_compiling():
        return resolve(*tensors, *settings)
    try:
        key = (settings, *[(one.dtype, one.shape, one.device, one.requires_grad) for one in tensors])
        call = calls.get(key)
    except (AttributeError, TypeError):  # not tensors, or settings of a wrong type: the checks raise the error
        return resolve(*tensors, *settings)
    if call is None:
        call = resolve(*tensors, *settings)
        if len(calls) >= REMEMBERED_CALLS:
            calls.clear()
        calls[key] = call
    return call


class AttentionState(NamedTuple):
    """The source of w: `attention` (C,), or a map's counts (window, 2, C) and position (1,).

    counted: w includes this step's counts. record: the map stores them.
    """

    attention: Tensor | None
    counts: Tensor | None = None
    position: Tensor | None = None
    counted: bool = False
    record: bool = False


def _kernels(options: Options) -> Any:
    return triton_kernels() if options.backend == "triton" else cpu


def kernel_settings(options: Options, num_classes: int, x: Tensor, logits: Tensor | None = None) -> Any:
    """The kernels' settings; None if the kernels do not support every step of these options."""
    if options.pairs != "class" or not terms_supported(options, num_classes, *x.shape[1:]):
        return None
    kernels = _kernels(options)
    if not (logits is None or kernels.logits_supported(logits)):
        return None
    weights = dict.fromkeys(("fd", "md", "ed"), 1.0) if logits is None else options.components
    fd = weights.get("fd", weights.get("nfd", 0.0))
    return kernels.Settings(
        options.ignore_index,
        options.label_smoothing,
        options.between_target,
        options.mean_target,
        options.embedding_target,
        fd,
        weights.get("md", 0.0),
        weights.get("ed", 0.0),
        "nfd" in weights,
    )


def fused_loss(
    samples: Any, state: AttentionState, lambd: float | Tensor, options: Options, settings: Any
) -> tuple[Tensor, Tensor]:
    """Eq. 12 of a whole batch: the loss with its graph, and `values` as described in the kernels' attention.py."""
    logits, x, targets, ce_weight, adjustment = samples
    number, tensor = (0.0, lambd) if isinstance(lambd, Tensor) else (float(lambd), None)
    attention, counts, position, counted, record = state
    rest = (number, counted, record)
    return _apply(
        x, logits, targets, ce_weight, adjustment, attention, counts, position, tensor, rest, options, settings
    )


def fused_loss_from_sums(
    samples: Any, batch: Any, lambd: float | Tensor, options: Options, settings: Any
) -> tuple[Tensor, Tensor]:
    """`fused_loss` from the sums of a batch over parts and ranks, and its w."""
    logits, x, targets, ce_weight, adjustment = samples
    number, tensor = (0.0, lambd) if isinstance(lambd, Tensor) else (float(lambd), None)
    rest = (number, float(batch.gradient_factor))
    return _apply(
        x, logits, targets, ce_weight, adjustment, batch.attention, batch.statistics, batch.ce_sums, tensor, rest,
        options, settings,
    )  # fmt: skip


class _Loss(torch.autograd.Function):
    """Eq. 12 from samples, or from sums if `rest` has two entries: `counts` and `position` are then the sums."""

    @staticmethod
    def forward(
        x: Tensor,
        logits: Tensor,
        targets: Tensor,
        ce_weight: Tensor | None,
        adjustment: Tensor | None,
        attention: Tensor | None,
        counts: Tensor | None,
        position: Tensor | None,
        lambd: Tensor | None,
        rest: tuple[Any, ...],
        options: Options,
        settings: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:
        kernels = _kernels(options)
        if len(rest) == 2:
            shape = x.shape[1:]
            return kernels.loss_from_sums(counts, position, attention, lambd, *rest, *shape, settings)
        return kernels.whole_loss(
            x, logits, targets, ce_weight, adjustment, attention, counts, position, lambd, *rest, settings
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, logits, targets, ce_weight, adjustment, *_, ctx.options, ctx.settings = inputs
        _, values, tables = output
        ctx.mark_non_differentiable(values, tables)
        ctx.save_for_backward(x, logits, targets, ce_weight, adjustment, tables)
        if not torch.compiler.is_compiling():  # Dynamo does not support this call
            ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, *_: Tensor) -> tuple[Tensor | None, ...]:
        if upstream is None:
            return (None,) * 12
        needs_x, needs_logits, *_ = ctx.needs_input_grad
        needs_x = needs_x and len(ctx.options.components) > 0  # bool(dict) breaks the graph before PyTorch 2.11

        def compute(*tensors: Tensor) -> Any:
            x, logits, *labels, tables, upstream = tensors
            return tuple(
                _kernels(ctx.options).gradients(
                    x, logits if needs_logits else None, *labels, upstream, upstream, upstream, tables, needs_x,
                    logits.shape[1], ctx.settings,
                )
            )  # fmt: skip

        gradients = iter(without_double_backward(compute, ctx.options, *ctx.saved_tensors, upstream))
        dlogits = next(gradients) if needs_logits else None
        return next(gradients) if needs_x else None, dlogits, *(None,) * 10


class _Terms(torch.autograd.Function):
    """fd, md, ed, nfd and the tables, from samples."""

    @staticmethod
    def forward(
        x: Tensor, targets: Tensor, attention: Tensor, options: Options, settings: Any
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        values, tables = _kernels(options).sample_terms(x, targets, attention, settings)
        return *values.unbind(), tables

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, targets, attention, ctx.options, ctx.settings = inputs
        *_, nfd, tables = output
        ctx.num_classes = attention.shape[0]
        ctx.mark_non_differentiable(nfd, tables)
        ctx.save_for_backward(x, targets, tables)
        if not torch.compiler.is_compiling():
            ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        def compute(x: Tensor, targets: Tensor, tables: Tensor, *upstream: Tensor | None) -> Any:
            return tuple(
                _kernels(ctx.options).gradients(
                    x, None, targets, None, None, *upstream, tables, True, ctx.num_classes, ctx.settings
                )
            )

        (dx,) = without_double_backward(compute, ctx.options, *ctx.saved_tensors, *upstream[:3])
        return dx, None, None, None, None


# fused_terms(x, targets, attention, options, settings): fd, md and ed with their graph, and nfd.
_apply, fused_terms = fast_apply(_Loss, 2), fast_apply(_Terms, 4)
