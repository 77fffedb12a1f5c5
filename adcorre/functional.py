"""FD, MD and ED as a differentiable function of the embeddings, whichever backend computes them."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from adcorre import checks
from adcorre.backends import Options, fast_apply, get_backend, linear_terms, resolve_options, without_double_backward
from adcorre.between import BetweenPairs, pairs_gradient, pairs_of_one_batch
from adcorre.fused import ResolvedCall, fused_terms, kernel_settings, resolve_call
from adcorre.reference import reference_terms
from adcorre.statistics import FlatStatistics, Tables, Values


class ClassStatistics(FlatStatistics):
    """Sums over the samples of each class, as `of` computes them. Statistics of two sets of samples add: `a + b`.

    The fields are parts of the vector `flat`, float32 or float64. z is an embedding vector, centred and normalized:

    - `direction_sum` (C, k, d): sums of z.
    - `centred_sum` (C, k, d): sums of x - mean(x).
    - `norm_sum` (C, k): sums of |x|.
    - `square_sum` (C,): sums of |z|^2 over samples and vectors.
    - `count` (C,): samples; NaN if a label is neither in [0, C) nor `ignore_index`.
    - `embedding_sum` (): the sum of ED over samples; its form depends on `embedding_target`.
    """

    @classmethod
    def of(
        cls,
        embeddings: Tensor,
        targets: Tensor,
        num_classes: int,
        *,
        embedding_target: checks.Target = -1,
        ignore_index: int = -100,
        backend: str = "auto",
        validate: bool | None = None,
    ) -> ClassStatistics:
        """The statistics of samples: embeddings (n, k, d) or (n, d), targets (n,); the rest as in `adcorre_terms`.

        Raises ValueError for the reference backend, which does not compute them.
        """
        checks.check_embeddings(embeddings)
        targets = checks.check_targets(targets, embeddings.shape[0], embeddings.device, ignore_index)
        checks.check_labels(targets, num_classes, ignore_index, validate)
        if backend == "reference":
            raise ValueError('backend="reference" has no class statistics; use "torch", which supports float64 too')
        options = resolve_options(
            embeddings, num_classes, backend, embedding_target=embedding_target, ignore_index=ignore_index
        )
        x = three_dimensional(embeddings)
        flat = class_sums(x, targets, num_classes, options)
        return cls(flat, num_classes, x.shape[1], x.shape[2], options.embedding_target)


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
        embeddings: (n, k, d), k embedding vectors per sample, or (n, d) for k = 1; float64, float32, bfloat16 or
            float16, any strides. Half precision is computed in float32; the gradient has the embeddings' dtype.
        targets: (n,) class labels, any integer dtype.
        attention: (C,) floating, Eq. 7's w, one weight per class; its length gives C. It carries no gradient.
            1/2 everywhere turns FD into the naive FD (Eq. 5).
        backend: "auto" selects fused kernels where available: "triton" on a supported GPU, "numba" on a CPU if Numba is
            installed (the extra `[cpu]`); else "torch". "reference": the paper's n x n matrices; the only backend with
            a double backward.
        between_target: FD's target for the correlation of samples of different classes: -1 (the paper), "simplex"
            = -1 / (C - 1), or any number in [-1, 1].
        mean_target: MD's target for the correlation of two class means; same values.
        embedding_target: ED's target for the correlation of two of a sample's k vectors; "simplex" = -1 / (k - 1).
        pairs: "class": FD takes the absolute value of the mean over the pairs of two classes, in time linear in n.
            "sample": of every pair of samples, as the paper prints it, in time quadratic in n and memory linear in n.
            Both give the same value at the targets -1 and 1. At other targets "class" is a lower bound of "sample",
            tight when classes are compact.
        precision: precision of the products with pairs="sample", as in `torch.set_float32_matmul_precision`. "highest":
            float32; "high": two bfloat16 per factor, error about 2^-16; "medium": one, about 2^-8, the fastest on a
            GPU. The gradient of a correlation that is closer to `between_target` than this error may have the wrong
            sign. The kernels apply it to half precision too. The torch backend goes below "highest" only if torch's
            own settings also allow it; the reference backend follows torch's settings alone.
        ignore_index: samples with this label are ignored.
        validate: whether to raise IndexError for a bad label: one that is neither in [0, C) nor `ignore_index`. None
            (default) checks where that is free (eager mode, CPU); True always checks, with a host sync on a GPU; False
            never. A bad label that is not checked makes the terms and their gradient NaN.

    Returns:
        `Terms(fd, md, ed)`.

    Raises:
        ValueError: wrong shapes or devices, targets outside [-1, 1], an attention that requires grad, an unknown
            backend, or a backend that does not support the inputs.
        TypeError: wrong dtypes, or arguments that are not tensors.
        IndexError: a bad label, see `validate`.
    """
    given = (backend, between_target, mean_target, embedding_target, ignore_index, pairs, precision)
    types = (type(between_target), type(mean_target), type(embedding_target), type(ignore_index))  # True equals 1
    options, settings = resolve_call(remembered_calls, _resolve, (embeddings, targets, attention), (given, types))
    checks.check_labels(targets, attention.shape[0], ignore_index, validate)
    x = three_dimensional(embeddings)
    targets = targets if targets.dtype == torch.int64 else targets.long()
    if settings is not None:
        return Terms(*fused_terms(x, targets, attention, options, settings)[:3])
    values = all_terms(x, targets, attention, options)
    return Terms(values.fd, values.md, values.ed)


remembered_calls: dict[Hashable, ResolvedCall] = {}


def _resolve(
    embeddings: Tensor, targets: Tensor, attention: Tensor, given: tuple[Any, ...], types: tuple[type, ...]
) -> ResolvedCall:
    """Check everything but labels, and resolve the options. `given` are the first fields of `Options`."""
    checks.check_embeddings(embeddings)
    checks.check_attention(attention)
    checks.check_same_device(attention, embeddings)
    checks.check_targets(targets, embeddings.shape[0], embeddings.device, Options(*given).ignore_index)
    num_classes = attention.shape[0]
    options = resolve_options(embeddings, num_classes, *given)
    return ResolvedCall(options, kernel_settings(options, num_classes, three_dimensional(embeddings)))


def all_terms(x: Tensor, targets: Tensor, attention: Tensor, options: Options) -> Values:
    """The terms of checked inputs, x (n, k, d), with their graph; nfd is detached."""
    if options.backend == "reference":
        with torch.autocast(x.device.type, enabled=False):
            values = Values(
                *reference_terms(
                    x,
                    targets,
                    attention,
                    between_target=options.between_target,
                    mean_target=options.mean_target,
                    embedding_target=options.embedding_target,
                    ignore_index=options.ignore_index,
                    pairs=options.pairs,
                )
            )
        return values._replace(nfd=values.nfd.detach())
    settings = kernel_settings(options, attention.shape[0], x)
    if settings is not None:
        return Values(*fused_terms(x, targets, attention, options, settings))
    flat = class_sums(x, targets, attention.shape[0], options)
    between = pairs_of_one_batch(x, targets, attention, flat, options) if options.pairs == "sample" else None
    return terms_from_sums(x, targets, attention, flat, between, options)


def terms_from_sums(
    x: Tensor, targets: Tensor, attention: Tensor, flat: Tensor, between: BetweenPairs | None, options: Options
) -> Values:
    """The terms of the batch with the statistics `flat`, with the graph of `x`, the batch or a part of it."""
    values = Values(*_apply_terms(x, targets, attention, flat, between, options)[0].unbind())
    return values._replace(nfd=values.nfd.detach())


@torch.no_grad()
def class_sums(x: Tensor, targets: Tensor, num_classes: int, options: Options) -> Tensor:
    """`ClassStatistics.flat` of checked inputs, without a gradient: the backward pass uses the tables."""
    return get_backend(options).statistics(
        x.detach(), targets, num_classes, options.ignore_index, options.embedding_target
    )


def values_and_tables(
    flat: Tensor, attention: Tensor, x: Tensor, between: BetweenPairs | None, options: Options
) -> tuple[Tensor, Tables]:
    """`Values` as one tensor and the tables, of the batch with the statistics `flat`; `x` (n, k, d): any part of it."""
    _, k, d = x.shape
    values, tables = linear_terms(flat, attention, k, d, options)
    if between is None:
        return values, tables
    fd, nfd = (between.sums * between.scale).unbind()
    pair_terms, zero = {"fd": fd, "nfd": nfd}, torch.zeros_like(fd)
    return values + torch.stack([pair_terms.get(name, zero) for name in Values._fields]), tables


def embedding_gradient(
    x: Tensor, targets: Tensor, upstream: Tensor, tables: Tables, between: BetweenPairs | None, options: Options
) -> Tensor:
    """dL/dx of a part x (n, k, d) of the batch, in its dtype, from the upstream gradient of `Values` (4,).

    The gradients within and between classes are added before rounding to half precision.
    """
    step = get_backend(options).embedding_gradient
    settings = (*tables, options.ignore_index, options.embedding_target)
    if between is None:
        return step(x, targets, upstream, *settings)
    pair_terms = pairs_gradient(between, Values(*upstream.unbind()).fd, options)
    return step(x.to(pair_terms.dtype), targets, upstream, *settings).add_(pair_terms).to(x.dtype)


def three_dimensional(embeddings: Tensor) -> Tensor:
    return embeddings if embeddings.dim() == 3 else embeddings[:, None]


class _TermsFunction(torch.autograd.Function):
    """Terms and tables forward; one pass from the tables to dL/dx backward. Saves the inputs and the tables."""

    @staticmethod
    def forward(
        x: Tensor, targets: Tensor, attention: Tensor, flat: Tensor, between: BetweenPairs | None, options: Options
    ) -> tuple[Tensor, ...]:
        values, tables = values_and_tables(flat, attention, x, between, options)
        return values, *tables

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, targets, _, _, ctx.between, ctx.options = inputs
        _, *tables = output
        ctx.mark_non_differentiable(*tables)
        ctx.save_for_backward(x, targets, *tables)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        between, options = ctx.between, ctx.options

        def compute(x: Tensor, targets: Tensor, *rest: Tensor) -> Tensor:
            *tables, upstream = rest
            return embedding_gradient(x, targets, upstream, Tables(*tables), between, options)

        return without_double_backward(compute, options, *ctx.saved_tensors, upstream), None, None, None, None, None


_apply_terms = fast_apply(_TermsFunction)
