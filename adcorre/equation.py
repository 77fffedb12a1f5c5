"""Eq. 12, cross-entropy plus lambda times the terms, and its gradient: of a whole batch, or of a part of one."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from adcorre.backends import Options, fast_apply, get_backend, without_double_backward
from adcorre.between import BetweenPairs, pairs_of_one_batch
from adcorre.checks import Components
from adcorre.distributed import BatchSums
from adcorre.functional import all_terms, class_sums, embedding_gradient, values_and_tables
from adcorre.fused import AttentionState, fused_loss, fused_loss_from_sums, kernel_settings
from adcorre.statistics import Tables, Values


class AdCorreOutput(NamedTuple):
    """The output of one call. `loss` carries the graph; the rest is detached, for logs, and costs no host sync.

    loss: (), Eq. 12. ce: (), cross-entropy. fd, md, ed: (), the terms before multiplication by lambda and by their
    weights, also those that are not in the loss. nfd: (), the naive FD (Eq. 5): unlike FD it does not change with the
    attention weights. attention: (C,), Eq. 7's w as used in this call.
    """

    loss: Tensor
    ce: Tensor
    fd: Tensor
    md: Tensor
    ed: Tensor
    nfd: Tensor
    attention: Tensor


class Samples(NamedTuple):
    """Checked samples with their graph: logits (n, C), x (n, k, d) and targets (n,) int64.

    ce_weight and adjustment, (C,) or None, are the loss's class weights and logit adjustment.
    """

    logits: Tensor
    x: Tensor
    targets: Tensor
    ce_weight: Tensor | None
    adjustment: Tensor | None


class Part(NamedTuple):
    """A batch, or a part of one. The `sums` of parts add."""

    samples: Samples
    options: Options
    sums: BatchSums


class Batch(NamedTuple):
    """The inputs of the loss of a whole batch, over its parts and ranks.

    statistics, ce_sums (2,): as in `BatchSums`. attention (C,): w as used by FD. between: for pairs="sample".
    gradient_factor: factor of the gradient that cancels the averaging over ranks.
    """

    statistics: Tensor
    ce_sums: Tensor
    attention: Tensor
    between: BetweenPairs | None = None
    gradient_factor: int = 1

    def ce_divisor(self) -> Tensor:
        """The divisor of the mean cross-entropy; 1 if no sample takes part, so that the mean is 0."""
        weight = self.ce_sums[1]
        return torch.where(weight == 0, 1, weight)

    def ce(self) -> Tensor:
        """The mean cross-entropy."""
        return self.ce_sums[0] / self.ce_divisor()

    def rows(self, start: int, stop: int) -> Batch:
        """The batch for a part of this rank's samples: its samples [start, stop)."""
        if self.between is None:
            return self
        first = self.between.start
        return self._replace(between=self.between._replace(start=first + start, stop=first + stop))


class BackwardInputs(NamedTuple):
    """The inputs of every part's gradient: upstream gradients of `Values` (4,) and of ce[0] (), and the tables.

    `values` is None if the loss has no term.
    """

    values: Tensor | None
    ce: Tensor
    tables: Tables


def sum_part(samples: Samples, options: Options) -> Part:
    """Samples and their sums. The sums carry no graph, except the reference backend's cross-entropy."""
    logits, x, targets, *weights = samples
    settings = (*weights, options.label_smoothing, options.ignore_index)
    logits_sums = get_backend(options).logits_sums
    if options.backend == "reference":
        counts, ce = logits_sums(logits, targets, *settings)
        return Part(samples, options, BatchSums(x.new_empty(0), counts, ce))
    with torch.no_grad():
        counts, ce = logits_sums(logits.detach(), targets, *settings)
    return Part(samples, options, BatchSums(class_sums(x, targets, logits.shape[1], options), counts, ce))


def loss_from_batch(part: Part, batch: Batch, lambd: float | Tensor) -> AdCorreOutput:
    """The whole batch's loss, with the part's graph."""
    samples, options, _ = part
    if not options.components:
        samples = samples._replace(x=samples.x.detach())
    if options.backend == "reference":
        values = all_terms(samples.x, samples.targets, batch.attention, options)
        ce = batch.ce()
        loss = total_loss(ce, values, lambd, options.components)
        values, ce = Values(*(value.detach() for value in values)), ce.detach()
    elif batch.between is None and (settings := _settings(samples, options)) is not None:
        return _output(*fused_loss_from_sums(samples, batch, lambd, options, settings), batch.attention.shape[0])
    else:
        loss, ce, packed, *_ = _apply(*samples, batch, lambd, options)
        values = Values(*packed.unbind())
    return AdCorreOutput(loss, ce, *values, batch.attention.to(values.fd.dtype))


def whole_loss(
    samples: Samples, state: AttentionState, lambd: float | Tensor, options: Options, settings: Any
) -> tuple[AdCorreOutput, Tensor]:
    """The loss of a whole batch in one call, and `values` as returned by `fused_loss`."""
    if not options.components:
        samples = samples._replace(x=samples.x.detach())
    loss, values = fused_loss(samples, state, lambd, options, settings)
    return _output(loss, values, samples.logits.shape[1]), values


def _output(loss: Tensor, values: Tensor, num_classes: int) -> AdCorreOutput:
    fd, md, ed, nfd, ce = values[0], values[1], values[2], values[3], values[4]  # faster than `unbind` of a view
    return AdCorreOutput(loss, ce, fd, md, ed, nfd, values[5 : 5 + num_classes])


def _settings(samples: Samples, options: Options) -> Any:
    logits, x, *_ = samples
    return kernel_settings(options, logits.shape[1], x, logits)


def make_batch(
    part: Part, sums: BatchSums, attention: Tensor, between: BetweenPairs | None = None, gradient_factor: int = 1
) -> Batch:
    """The batch with these `sums`, over ranks and chunks. `between` None: computed from the part's own samples."""
    samples, options, _ = part
    if between is None and options.pairs == "sample" and options.backend != "reference":
        between = pairs_of_one_batch(samples.x, samples.targets, attention, sums.statistics, options)
    return Batch(sums.statistics, sums.ce, attention, between, gradient_factor)


def fd_weights(attention: Tensor, components: Components) -> Tensor:
    """w as used by FD: 1/2 for every class if the loss has "nfd", the naive FD."""
    return torch.full_like(attention, 0.5) if "nfd" in components else attention


def term_weights(components: Components) -> dict[str, float]:
    """The weight in the loss by name of `Values`: "nfd" is FD with w = 1/2."""
    return {"fd" if name == "nfd" else name: weight for name, weight in components.items()}


def total_loss(ce: Tensor, values: Values, lambd: float | Tensor, components: Components) -> Tensor:
    """CE + lambda (FD + MD + ED), Eq. 12, with the terms in `components`, each multiplied by its weight."""
    total: Tensor | None = None
    for name, weight in term_weights(components).items():
        term = _weighted(getattr(values, name), weight)
        total = term if total is None else total + term
    return ce.clone() if total is None else ce + lambd * total


def _weighted(tensor: Tensor, weight: float) -> Tensor:
    return tensor if weight == 1 else weight * tensor


def evaluate(part: Part, batch: Batch, lambd: float | Tensor, upstream: Tensor) -> tuple[AdCorreOutput, BackwardInputs]:
    """The whole batch's output without a graph, and the inputs of the gradient. upstream: (), the loss's gradient."""
    loss, ce, values, tables = _forward(part.samples.x, batch, lambd, part.options)
    named = Values(*values.unbind())
    output = AdCorreOutput(loss, ce, *named, batch.attention.to(values.dtype))
    return output, backward_inputs(batch, upstream, lambd, tables, part.options)


def _forward(x: Tensor, batch: Batch, lambd: float | Tensor, options: Options) -> tuple[Tensor, Tensor, Tensor, Tables]:
    values, tables = values_and_tables(batch.statistics, batch.attention, x, batch.between, options)
    ce = batch.ce()
    return total_loss(ce, Values(*values.unbind()), lambd, options.components), ce, values, tables


def backward_inputs(
    batch: Batch, upstream: Tensor, lambd: float | Tensor, tables: Tables, options: Options
) -> BackwardInputs:
    """The inputs of the gradient; `upstream` () is the gradient of the loss."""
    upstream = upstream if batch.gradient_factor == 1 else upstream * batch.gradient_factor
    ce_upstream = (upstream / batch.ce_divisor()).to(batch.ce_sums.dtype)
    weights = term_weights(options.components)
    if not weights:
        return BackwardInputs(None, ce_upstream, tables)
    scale, zero = upstream * lambd, torch.zeros_like(upstream)
    terms = [_weighted(scale, weights[name]) if name in weights else zero for name in Values._fields]
    return BackwardInputs(torch.stack(terms).to(tables.feature.dtype), ce_upstream, tables)


def gradients(
    samples: Samples, batch: Batch, backward: BackwardInputs, options: Options, needs_logits: bool, needs_x: bool
) -> tuple[Tensor | None, Tensor | None]:
    """dL/dlogits and dL/dx. With `batch.between`, the samples are its own samples [start, stop)."""
    logits, x, targets, *weights = samples
    settings = (*weights, options.label_smoothing, options.ignore_index)
    dlogits = get_backend(options).logits_gradient(logits, targets, backward.ce, *settings) if needs_logits else None
    if not needs_x or backward.values is None:
        return dlogits, None
    between = batch.between if term_weights(options.components).get("fd") else None
    return dlogits, embedding_gradient(x, targets, backward.values, backward.tables, between, options)


class _LossFunction(torch.autograd.Function):
    """Loss, CE, terms and tables forward, from the sums; both gradients backward. Saves the inputs and the tables."""

    @staticmethod
    def forward(
        logits: Tensor,
        x: Tensor,
        targets: Tensor,
        ce_weight: Tensor | None,
        adjustment: Tensor | None,
        batch: Batch,
        lambd: float | Tensor,
        options: Options,
    ) -> tuple[Tensor, ...]:
        loss, ce, values, tables = _forward(x, batch, lambd, options)
        return loss, ce, values, *tables

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *samples, batch, ctx.lambd, ctx.options = inputs
        ctx.batch = batch._replace(statistics=batch.ce_sums)  # statistics are large and not read again
        _, ce, values, *tables = output
        ctx.mark_non_differentiable(ce, values, *tables)
        ctx.save_for_backward(*samples, *tables)
        if not torch.compiler.is_compiling():  # Dynamo does not support this call
            ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, *_: Tensor) -> tuple[Tensor | None, ...]:
        if upstream is None:
            return (None,) * 8
        batch, lambd, options = ctx.batch, ctx.lambd, ctx.options
        needed = ctx.needs_input_grad[:2]

        def compute(*tensors: Tensor) -> tuple[Tensor | None, Tensor | None]:
            *saved, upstream = tensors
            backward = backward_inputs(batch, upstream, lambd, Tables(*saved[5:]), options)
            return gradients(Samples(*saved[:5]), batch, backward, options, *needed)

        both = without_double_backward(compute, options, *ctx.saved_tensors, upstream)
        return *both, None, None, None, None, None, None


_apply = fast_apply(_LossFunction)
