"""FD, MD and ED as a differentiable function of the embeddings, whichever backend computes them."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from adcorre import checks
from adcorre.backends import (
    Gradient,
    Options,
    backend_of,
    bound_once,
    gradient_by,
    linear_terms,
    resolve_options,
)
from adcorre.between import BetweenFunction, Whole, between_alone, per_pair
from adcorre.reference import reference_terms
from adcorre.statistics import Tables


class Terms(NamedTuple):
    """FD (Eq. 9), MD (Eq. 10) and ED (Eq. 11): 0-d tensors in float32, or float64 for float64 embeddings."""

    fd: Tensor
    md: Tensor
    ed: Tensor


def adcorre_terms(
    embeddings: Tensor,
    targets: Tensor,
    attention: Tensor,
    *,
    backend: str = "auto",
    between_target: checks.Target = -1,
    mean_target: checks.Target = -1,
    embedding_target: checks.Target = -1,
    pairs: Literal["class", "sample"] = "class",
    precision: Literal["highest", "high", "medium"] = "highest",
    ignore_index: int = -100,
    validate: bool | None = None,
) -> Terms:
    """The three terms of the Ad-Corre loss, exact, in O(n k d) time.

    Args:
        embeddings: (n, k, d), k embedding vectors a sample, or (n, d) for k = 1; float64, float32, bfloat16 or
            float16, any strides. Half precision is computed in float32; its gradient comes back in half precision.
        targets: (n,) class labels, any integer dtype.
        attention: (C,) floating, Eq. 7's w, one weight per class; its length gives C. It carries no gradient.
            1/2 everywhere turns FD into the naive FD (Eq. 5).
        backend: "auto" (the fused kernels on a GPU that they support, else "torch"), "triton", "torch", or
            "reference" (the paper's n x n matrices; the only one with a double backward).
        between_target: FD's target for the correlation of samples of different classes: -1 (the paper), "simplex"
            = -1 / (C - 1), or any number in [-1, 1]. Away from +-1 the mean over the pairs of two classes is taken
            inside the absolute value: a lower bound of the pairwise sum, tight when classes are compact.
        mean_target: MD's target for the correlation of two class means; as above.
        embedding_target: ED's target for the correlation of two of a sample's k vectors; "simplex" = -1 / (k - 1).
        pairs: "class" (linear in n), or "sample": FD with the absolute value of every pair of samples, as printed, at
            any `between_target`. Time is then quadratic in n, memory is not. At +-1 both are the same number.
        precision: of the products of "sample", in the words of `torch.set_float32_matmul_precision`. "highest": the
            error budget of float32; "high": factors as two bfloat16 each, about 2^-16; "medium": as one, about 2^-8,
            the fastest on a GPU. A correlation that is nearer to `between_target` than its error may get the other sign
            in the gradient. The kernels take it at its word, for half precision too; the torch backend goes below
            "highest" only where it may and torch's own settings do, the reference follows these alone.
        ignore_index: samples with this label take no part.
        validate: what becomes of a label that is neither in [0, C) nor `ignore_index`. None (default) looks where
            looking is free (eager, CPU) and raises; True always looks, at the cost of a host sync on a GPU; False
            never. A bad label that nobody looked at makes the terms and their gradient NaN.

    Returns:
        `Terms(fd, md, ed)`.

    Raises:
        ValueError: shapes, devices, targets outside [-1, 1], an attention that requires grad, an unknown backend, or
            a backend that cannot do what is asked.
        TypeError: dtypes.
        IndexError: a bad label, see `validate`.
    """
    checks.check_attention(attention, embeddings.device)
    checks.check_inputs(embeddings, targets, attention.shape[0], ignore_index, validate)
    options = resolve_options(
        embeddings,
        attention.shape[0],
        backend,
        between_target,
        mean_target,
        embedding_target,
        ignore_index,
        pairs,
        precision,
    )
    fd, md, ed, _ = all_terms(embeddings, targets, attention, options)
    return Terms(fd, md, ed)


def all_terms(
    embeddings: Tensor,
    targets: Tensor,
    attention: Tensor,
    options: Options,
    flat: Tensor | None = None,
    between: tuple[Whole, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(fd, md, ed, nfd) of checked inputs; nfd, the naive FD of Eq. 5, is for logs: detached.

    `flat` are the statistics of the whole batch where the embeddings are a part of it, and `between`, for
    pairs="sample", its samples and the sums of `between_sums` over all of them: the terms are then the whole batch's,
    and their gradient is its gradient for these embeddings. The reference has no statistics.
    """
    x = three_dimensional(embeddings)
    if options.backend == "reference":
        with torch.autocast(x.device.type, enabled=False):
            fd, md, ed, nfd = reference_terms(
                x,
                targets,
                attention,
                between_target=options.between_target,
                mean_target=options.mean_target,
                embedding_target=options.embedding_target,
                ignore_index=options.ignore_index,
                pairs=options.pairs,
            )
        return fd, md, ed, nfd.detach()
    if flat is None:
        flat = class_sums(x, targets, attention.shape[0], options)
    if options.pairs == "class":
        fd, md, ed, nfd = _TermsFunction.apply(x, targets, flat, attention, options)[0].unbind()
        return fd, md, ed, nfd.detach()
    whole, sums = between or between_alone(x, targets, attention, options)
    x = x.to(flat.dtype)  # so that autograd adds up both parts of the gradient before it rounds to half precision
    fd, md, ed, nfd = _TermsFunction.apply(x, targets, flat, attention, options)[0].unbind()
    scale = per_pair(flat, attention.shape[0], *x.shape[1:])
    pairs = BetweenFunction.apply(x, whole.x, whole.targets, whole.start, attention, sums, scale, options)
    return fd + pairs[0], md, ed, (nfd + pairs[1]).detach()


@torch.no_grad()
def class_sums(embeddings: Tensor, targets: Tensor, num_classes: int, options: Options) -> Tensor:
    """`ClassStatistics.flat` of checked inputs. It carries no gradient: that comes from the tables."""
    x = three_dimensional(embeddings).detach()
    return backend_of(options.backend).statistics(
        x, targets, num_classes, options.ignore_index, options.embedding_target
    )


@torch.no_grad()
def values_and_tables(flat: Tensor, attention: Tensor, k: int, d: int, options: Options) -> tuple[Tensor, Tables]:
    """values (4,) = (fd, md, ed, nfd) and the tables of the samples behind `flat`."""
    values, *tables = linear_terms(flat, attention, k, d, options)
    return values, Tables(*tables)


@torch.no_grad()
def embedding_gradient(
    embeddings: Tensor,
    targets: Tensor,
    upstream: Tensor,
    tables: Tables,
    options: Options,
    between: Tensor | None = None,
) -> Tensor:
    """dL/dx in the embeddings' shape and dtype, from the tables and the upstream gradient of `values` (4,).

    `between` (n, k, d) is what comes on top for pairs="sample"; added before anything is rounded to half precision.
    """
    x = three_dimensional(embeddings).detach()
    if between is not None:
        x = x.to(between.dtype)
    out = backend_of(options.backend).gradient(
        x, targets, upstream, *tables, options.ignore_index, options.embedding_target
    )
    if between is not None:
        out = out.add_(between).to(embeddings.dtype)
    return out.view_as(embeddings)


def three_dimensional(embeddings: Tensor) -> Tensor:
    return embeddings if embeddings.dim() == 3 else embeddings[:, None]


@bound_once
class _TermsFunction(torch.autograd.Function):
    """Terms and tables forward; one pass from the tables to dL/dx backward. Saves the inputs and the tables."""

    @staticmethod
    def forward(x: Tensor, targets: Tensor, flat: Tensor, attention: Tensor, options: Options) -> tuple[Tensor, ...]:
        _, k, d = x.shape
        return linear_terms(flat, attention, k, d, options)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, targets, _, _, ctx.options = inputs
        _, *tables = output
        ctx.mark_non_differentiable(*tables)
        ctx.save_for_backward(x, targets, *tables)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, targets, *tables = ctx.saved_tensors
        return gradient_by(_GradientFunction, x, targets, upstream, *tables, ctx.options), None, None, None, None


@bound_once
class _GradientFunction(Gradient):
    @staticmethod
    def forward(
        x: Tensor,
        targets: Tensor,
        upstream: Tensor,
        feature: Tensor,
        mean: Tensor,
        embedding_scale: Tensor,
        options: Options,
    ) -> Tensor:
        return backend_of(options.backend).gradient(
            x, targets, upstream, feature, mean, embedding_scale, options.ignore_index, options.embedding_target
        )
