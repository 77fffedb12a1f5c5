"""FD, MD and ED as a differentiable function of the embeddings, whichever backend computes them."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from adcorre import checks, torch_backend
from adcorre import statistics as class_statistics
from adcorre.reference import reference_terms
from adcorre.statistics import ClassStatistics, Tables


class Terms(NamedTuple):
    """FD (Eq. 9), MD (Eq. 10) and ED (Eq. 11): 0-d tensors in float32, or float64 for float64 embeddings."""

    fd: Tensor
    md: Tensor
    ed: Tensor


class Options(NamedTuple):
    """How to compute the terms: the user's words resolved to numbers and to one backend's name."""

    backend: str
    between_target: float
    mean_target: float
    embedding_target: float
    ignore_index: int
    pairs: str = "class"
    precision: str = "highest"


class Backend(Protocol):
    """The three linear steps, and FD over all pairs of samples. `flat` is laid out as in `ClassStatistics`."""

    def statistics(
        self, x: Tensor, targets: Tensor, num_classes: int, ignore_index: int, embedding_target: float
    ) -> Tensor:
        """x (n, k, d), targets (n,) -> flat."""

    def terms(
        self,
        flat: Tensor,
        attention: Tensor,
        k: int,
        d: int,
        between_target: float,
        mean_target: float,
        embedding_target: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """flat -> values (4,) = (fd, md, ed, nfd), and the tables G (C, k, d), H (C, k, d), 2 / (n k^2) ()."""

    def gradient(
        self,
        x: Tensor,
        targets: Tensor,
        upstream: Tensor,
        feature: Tensor,
        mean: Tensor,
        embedding_scale: Tensor,
        ignore_index: int,
        embedding_target: float,
    ) -> Tensor:
        """dL/dx, contiguous, in x's dtype, from the tables and the upstream gradient of `values` (4,)."""

    def pair_values(
        self,
        x: Tensor,
        targets: Tensor,
        attention: Tensor,
        between_target: float,
        ignore_index: int,
        precision: str,
        complete: bool,
        row_start: int,
        row_stop: int,
    ) -> Tensor:
        """As `adcorre.pairs.pair_values`."""

    def pair_gradient(
        self,
        x: Tensor,
        targets: Tensor,
        attention: Tensor,
        scale: Tensor,
        between_target: float,
        ignore_index: int,
        precision: str,
        complete: bool,
        row_start: int,
        row_stop: int,
    ) -> Tensor:
        """As `adcorre.pairs.pair_gradient`."""


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
        precision: the least precision of the products of "sample" for float32, in the words of
            `torch.set_float32_matmul_precision`: a permission, of which the torch backend makes no use.
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


def resolve_options(
    embeddings: Tensor,
    num_classes: int,
    backend: str,
    between_target: checks.Target,
    mean_target: checks.Target,
    embedding_target: checks.Target,
    ignore_index: int,
    pairs: str = "class",
    precision: str = "highest",
) -> Options:
    """Targets as numbers, and `backend` as one that can do it; ValueError where none of that name can."""
    k = embeddings.shape[1] if embeddings.dim() == 3 else 1
    resolved = Options(
        backend,
        checks.resolve_target("between_target", between_target, num_classes),
        checks.resolve_target("mean_target", mean_target, num_classes),
        checks.resolve_target("embedding_target", embedding_target, k),
        ignore_index,
        pairs,
        precision,
    )
    checks.check_backend(backend)
    checks.check_pairs(pairs, precision)
    if backend in ("torch", "reference"):
        return resolved
    if backend == "auto" and not embeddings.is_cuda:
        return resolved._replace(backend="torch")
    reason = _why_not_triton(embeddings, num_classes, k, resolved)
    if reason is None:
        return resolved._replace(backend="triton")
    if backend == "triton":
        raise ValueError(f'backend="triton": {reason}')
    if not torch.compiler.is_compiling():
        _warn_once(reason)
    return resolved._replace(backend="torch")


def all_terms(
    embeddings: Tensor, targets: Tensor, attention: Tensor, options: Options, flat: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(fd, md, ed, nfd) of checked inputs; nfd, the naive FD of Eq. 5, is for logs: detached.

    `flat` are the statistics of the whole batch where the embeddings are a part of it: the terms are then the whole
    batch's, and their gradient is its gradient for these embeddings. The reference has no statistics.
    """
    x = _three_dimensional(embeddings)
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
    function = _PairTermsFunction if options.pairs == "sample" else _TermsFunction
    fd, md, ed, nfd = function.apply(x, targets, flat, attention, options)[0].unbind()
    return fd, md, ed, nfd.detach()


@torch.no_grad()
def class_sums(embeddings: Tensor, targets: Tensor, num_classes: int, options: Options) -> Tensor:
    """`ClassStatistics.flat` of checked inputs. It carries no gradient: that comes from the tables."""
    x = _three_dimensional(embeddings).detach()
    return _backend(options.backend).statistics(x, targets, num_classes, options.ignore_index, options.embedding_target)


@torch.no_grad()
def values_and_tables(flat: Tensor, attention: Tensor, k: int, d: int, options: Options) -> tuple[Tensor, Tables]:
    """values (4,) = (fd, md, ed, nfd) and the tables of the samples behind `flat`."""
    values, *tables = _terms(flat, attention, k, d, options)
    return values, Tables(*tables)


def _terms(flat: Tensor, attention: Tensor, k: int, d: int, options: Options) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The backend's `terms`; the torch backend's where the kernels leave many classes to whole-tensor operations."""
    backend = _backend(options.backend)
    if options.backend == "triton" and not _triton_backend().terms_supported(attention.shape[0], k, d):
        backend = torch_backend
    return backend.terms(flat, attention, k, d, options.between_target, options.mean_target, options.embedding_target)


@torch.no_grad()
def embedding_gradient(
    embeddings: Tensor, targets: Tensor, upstream: Tensor, tables: Tables, options: Options
) -> Tensor:
    """dL/dx in the embeddings' shape and dtype, from the tables and the upstream gradient of `values` (4,)."""
    x = _three_dimensional(embeddings).detach()
    gradient = _backend(options.backend).gradient
    return gradient(x, targets, upstream, *tables, options.ignore_index, options.embedding_target).view_as(embeddings)


def _three_dimensional(embeddings: Tensor) -> Tensor:
    return embeddings if embeddings.dim() == 3 else embeddings[:, None]


class _TermsFunction(torch.autograd.Function):
    """Terms and tables forward; one pass from the tables to dL/dx backward. Saves the inputs and the tables."""

    @staticmethod
    def forward(x: Tensor, targets: Tensor, flat: Tensor, attention: Tensor, options: Options) -> tuple[Tensor, ...]:
        _, k, d = x.shape
        return _terms(flat, attention, k, d, options)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, targets, _, _, ctx.options = inputs
        _, *tables = output
        ctx.mark_non_differentiable(*tables)
        ctx.save_for_backward(x, targets, *tables)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, targets, *tables = ctx.saved_tensors
        return _GradientFunction.apply(x, targets, upstream, *tables, ctx.options), None, None, None, None


class _PairTermsFunction(torch.autograd.Function):
    """FD over every pair of samples: pairs within a class from the statistics, pairs between classes tile by tile."""

    @staticmethod
    def forward(x: Tensor, targets: Tensor, flat: Tensor, attention: Tensor, options: Options) -> tuple[Tensor, ...]:
        n, k, d = x.shape
        statistics = ClassStatistics(flat, attention.shape[0], k, d, options.embedding_target)
        values, tables = class_statistics.terms(statistics, attention, None, options.mean_target)
        per_pair = (1 / (k * statistics.count.sum().clamp(min=1) ** 2)).to(values.dtype)
        between = _backend(options.backend).pair_values(
            x, targets, attention, options.between_target, options.ignore_index, options.precision, False, 0, n
        )
        zero = torch.zeros_like(between[0])
        values = values + per_pair * torch.stack((between[0], zero, zero, between[1]))
        return values, *tables, per_pair

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, targets, _, attention, ctx.options = inputs
        _, *rest = output
        ctx.mark_non_differentiable(*rest)
        ctx.save_for_backward(x, targets, attention, *rest)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        return _PairGradientFunction.apply(*ctx.saved_tensors, upstream, ctx.options), None, None, None, None


class _PairGradientFunction(torch.autograd.Function):
    """As `_GradientFunction`, with the pairs' part; added up before either is rounded to the inputs' dtype."""

    @staticmethod
    def forward(
        x: Tensor,
        targets: Tensor,
        attention: Tensor,
        feature: Tensor,
        mean: Tensor,
        embedding_scale: Tensor,
        per_pair: Tensor,
        upstream: Tensor,
        options: Options,
    ) -> Tensor:
        backend = _backend(options.backend)
        linear = backend.gradient(
            x.to(feature.dtype),
            targets,
            upstream,
            feature,
            mean,
            embedding_scale,
            options.ignore_index,
            options.embedding_target,
        )
        between = backend.pair_gradient(
            x,
            targets,
            attention,
            upstream[0] * per_pair,
            options.between_target,
            options.ignore_index,
            options.precision,
            False,
            0,
            x.shape[0],
        )
        return linear.add_(between).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.backend = inputs[-1].backend

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError(f'adcorre: backend "{ctx.backend}" has no double backward; backend="reference" has one')


class _GradientFunction(torch.autograd.Function):
    """The backward pass as a function of its own, so that a second derivative is refused and never silently wrong."""

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
        return _backend(options.backend).gradient(
            x, targets, upstream, feature, mean, embedding_scale, options.ignore_index, options.embedding_target
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.backend = inputs[-1].backend

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError(f'adcorre: backend "{ctx.backend}" has no double backward; backend="reference" has one')


def _backend(name: str) -> Backend:
    return torch_backend if name == "torch" else _triton_backend()


@cache
def _triton_backend() -> Any:
    """The kernels package, or the reason (a string) why it cannot be imported."""
    try:
        import adcorre_kernels
    except ImportError as error:
        return f"the Triton kernels cannot be imported ({error})"
    return adcorre_kernels


def _why_not_triton(embeddings: Tensor, num_classes: int, k: int, options: Options) -> str | None:
    kernels = _triton_backend()
    if isinstance(kernels, str):
        return kernels
    return kernels.why_unsupported(embeddings, num_classes, k, options.embedding_target)


@cache
def _warn_once(reason: str) -> None:
    warnings.warn(f'adcorre: backend "auto" takes "torch": {reason}', stacklevel=2)
