"""FD, MD and ED as a differentiable function of the embeddings, whichever backend computes them."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from adcorre import checks
from adcorre.backends import Options, apply_of, backend_of, linear_terms, resolve_options, without_double_backward
from adcorre.between import Between, between_alone, between_gradient
from adcorre.fused import fused_terms, settings_of
from adcorre.reference import reference_terms
from adcorre.statistics import FlatStatistics, Tables, Values


class ClassStatistics(FlatStatistics):
    __doc__ = FlatStatistics.__doc__

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

        ValueError for the reference backend, which has none.
        """
        checks.check_embeddings(embeddings)
        targets = checks.check_targets(targets, embeddings.shape[0], embeddings.device, ignore_index)
        checks.check_labels(targets, num_classes, ignore_index, validate)
        if backend == "reference":
            raise ValueError('backend="reference" has no class statistics; "torch" has, in float64 too')
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
        embeddings: (n, k, d), k embedding vectors a sample, or (n, d) for k = 1; float64, float32, bfloat16 or
            float16, any strides. Half precision is computed in float32; its gradient comes back in half precision.
        targets: (n,) class labels, any integer dtype.
        attention: (C,) floating, Eq. 7's w, one weight per class; its length gives C. It carries no gradient.
            1/2 everywhere turns FD into the naive FD (Eq. 5).
        backend: "auto" takes fused kernels where there are some: "triton" on a GPU that they support, "numba" on a CPU
            where Numba is installed (`pip install adcorre[cpu]`); else "torch". "reference": the paper's n x n
            matrices; the only one with a double backward.
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
        TypeError: dtypes, and arguments that are no tensors.
        IndexError: a bad label, see `validate`.
    """
    checks.check_embeddings(embeddings)
    checks.check_attention(attention)
    checks.check_same_device(attention, embeddings)
    targets = checks.check_targets(targets, embeddings.shape[0], embeddings.device, ignore_index)
    checks.check_labels(targets, attention.shape[0], ignore_index, validate)
    targets_asked = (between_target, mean_target, embedding_target)
    options = resolve_options(embeddings, attention.shape[0], backend, *targets_asked, ignore_index, pairs, precision)
    values = all_terms(three_dimensional(embeddings), targets, attention, options)
    return Terms(values.fd, values.md, values.ed)


def all_terms(x: Tensor, targets: Tensor, attention: Tensor, options: Options) -> Values:
    """The terms of checked inputs, x (n, k, d), with their graph; nfd is for logs and carries none."""
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
    settings = settings_of(options, attention.shape[0], x)
    if settings is not None:
        return Values(*fused_terms(x, targets, attention, options, settings))
    flat = class_sums(x, targets, attention.shape[0], options)
    between = between_alone(x, targets, attention, flat, options) if options.pairs == "sample" else None
    return terms_from_sums(x, targets, attention, flat, between, options)


def terms_from_sums(
    x: Tensor, targets: Tensor, attention: Tensor, flat: Tensor, between: Between | None, options: Options
) -> Values:
    """The terms of the batch behind `flat`, of which `x` may be a part: with the graph of that part."""
    values = Values(*_apply_terms(x, targets, attention, flat, between, options)[0].unbind())
    return values._replace(nfd=values.nfd.detach())


@torch.no_grad()
def class_sums(x: Tensor, targets: Tensor, num_classes: int, options: Options) -> Tensor:
    """`ClassStatistics.flat` of checked inputs. It carries no gradient: that comes from the tables."""
    return backend_of(options).statistics(
        x.detach(), targets, num_classes, options.ignore_index, options.embedding_target
    )


def values_and_tables(
    flat: Tensor, attention: Tensor, x: Tensor, between: Between | None, options: Options
) -> tuple[Tensor, Tables]:
    """`Values` as one tensor and the tables, of the batch behind `flat`; `x` (n, k, d) is any part of it."""
    _, k, d = x.shape
    values, tables = linear_terms(flat, attention, k, d, options)
    if between is None:
        return values, tables
    fd, nfd = (between.sums * between.scale).unbind()
    of_pairs, zero = {"fd": fd, "nfd": nfd}, torch.zeros_like(fd)
    return values + torch.stack([of_pairs.get(name, zero) for name in Values._fields]), tables


def embedding_gradient(
    x: Tensor, targets: Tensor, upstream: Tensor, tables: Tables, between: Between | None, options: Options
) -> Tensor:
    """dL/dx of a part x (n, k, d) of the batch, in its dtype, from the upstream gradient of `Values` (4,).

    Both parts of pairs="sample" are added before anything is rounded to half precision.
    """
    step = backend_of(options).embedding_gradient
    settings = (*tables, options.ignore_index, options.embedding_target)
    if between is None:
        return step(x, targets, upstream, *settings)
    of_pairs = between_gradient(between, Values(*upstream.unbind()).fd, options)
    return step(x.to(of_pairs.dtype), targets, upstream, *settings).add_(of_pairs).to(x.dtype)


def three_dimensional(embeddings: Tensor) -> Tensor:
    return embeddings if embeddings.dim() == 3 else embeddings[:, None]


class _TermsFunction(torch.autograd.Function):
    """Terms and tables forward; one pass from the tables to dL/dx backward. Saves the inputs and the tables."""

    @staticmethod
    def forward(
        x: Tensor, targets: Tensor, attention: Tensor, flat: Tensor, between: Between | None, options: Options
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


_apply_terms = apply_of(_TermsFunction)
