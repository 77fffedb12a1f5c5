"""The backends: what each can do, which one a call takes, and how their steps are called."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adcorre import checks, torch_backend
from adcorre.statistics import Tables
from adcorre_kernels import cpu


class Options(NamedTuple):
    """How to compute the loss: in the user's words, which `resolve_options` makes numbers and one backend's name."""

    backend: str = "auto"
    between_target: Any = -1.0  # these three are floats once resolved
    mean_target: Any = -1.0
    embedding_target: Any = -1.0
    ignore_index: int = -100
    pairs: str = "class"
    precision: str = "highest"
    label_smoothing: float = 0.0
    components: checks.Components = {}  # noqa: RUF012 - never written to


class Backend(NamedTuple):
    """The five steps of the loss and FD over all pairs of samples. They carry no autograd formula.

    `targets` (n,) are int64. A sample takes part if its label is in [0, C) and not `ignore_index`; a bad label is
    neither. `flat` is laid out as in `ClassStatistics`, `values` (4,) as in `Values`.
    """

    # (logits (n, C), targets, ce_weight (C,)?, adjustment (C,)?, label_smoothing, ignore_index)
    # -> (2, C) int64 predicted right and seen; (2,) sums of cross-entropies and of weights; NaN if one is bad
    logits_sums: Callable[..., tuple[Tensor, Tensor]]
    # (x (n, k, d), targets, num_classes, ignore_index, embedding_target) -> flat
    statistics: Callable[..., Tensor]
    # (flat, attention (C,), k, d, between_target or None, mean_target, embedding_target) -> values, *Tables
    terms: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]
    # (x, targets, upstream (4,) of values, *Tables, ignore_index, embedding_target) -> dL/dx, contiguous, in x's dtype
    embedding_gradient: Callable[..., Tensor]
    # (logits, targets, upstream () of the sum of cross-entropies, ce_weight?, adjustment?, label_smoothing,
    # ignore_index) -> dL/dlogits in their dtype
    logits_gradient: Callable[..., Tensor]
    # as in `adcorre.pairs`
    pair_values: Callable[..., Tensor]
    pair_gradient: Callable[..., Tensor]


_TORCH = Backend(*(getattr(torch_backend, step) for step in Backend._fields))
_NUMBA = _TORCH._replace(**{step: getattr(cpu, step) for step in Backend._fields if hasattr(cpu, step)})


def resolve_options(embeddings: Tensor, num_classes: int, *given: Any, **named: Any) -> Options:
    """`Options(*given, **named)`, checked: targets as numbers, and `backend` as one that can do it.

    ValueError where none of that name can.
    """
    asked = Options(*given, **named)
    backend, between, mean, embedding = asked[:4]
    k = embeddings.shape[1] if embeddings.dim() == 3 else 1
    aims = (
        checks.resolve_target("between_target", between, num_classes),
        checks.resolve_target("mean_target", mean, num_classes),
        checks.resolve_target("embedding_target", embedding, k),
    )
    resolved = Options._make((backend, *aims, *asked[4:]))
    checks.check_backend(backend)
    checks.check_pairs(asked.pairs, asked.precision)
    if backend in ("torch", "reference"):
        return resolved
    if backend == "auto" and not (embeddings.is_cuda or (embeddings.is_cpu and cpu.installed())):
        return resolved._replace(backend="torch")
    fused = backend if backend != "auto" else "triton" if embeddings.is_cuda else "numba"
    if fused == "triton":
        reason = _why_not_triton(embeddings, num_classes, k, resolved)
    else:
        reason = cpu.why_unsupported(embeddings)
    if reason is None:
        return resolved if fused == backend else resolved._replace(backend=fused)
    if backend != "auto":
        raise ValueError(f'backend="{backend}": {reason}')
    if not torch.compiler.is_compiling():
        _warn_once(reason)
    return resolved._replace(backend="torch")


def backend_of(options: Options) -> Backend:
    """The steps of `options.backend`; those that the kernels leave out are the torch backend's."""
    if options.backend == "triton":
        return _triton_backend()
    return _NUMBA if options.backend == "numba" else _TORCH


@cache
def _triton_backend() -> Backend:
    kernels = triton_kernels()
    return _TORCH._replace(
        statistics=kernels.statistics,
        terms=kernels.terms,
        embedding_gradient=kernels.gradient,
        logits_sums=_where_supported(kernels.logits_supported, kernels.logits_sums, _TORCH.logits_sums),
        logits_gradient=_where_supported(kernels.logits_supported, kernels.logits_gradient, _TORCH.logits_gradient),
        pair_values=kernels.pair_values,
        pair_gradient=kernels.pair_gradient,
    )


def _where_supported(
    supported: Callable[[Tensor], bool], kernel: Callable[..., Any], plain: Callable[..., Any]
) -> Callable[..., Any]:
    """A step over logits: `kernel`, or `plain` for those that it does not take."""

    def step(logits: Tensor, *rest: Any) -> Any:
        return (kernel if supported(logits) else plain)(logits, *rest)

    return step


@cache
def triton_kernels() -> Any:
    """The kernels package, or the reason (a string) why it cannot be imported."""
    try:
        from adcorre_kernels import gpu
    except ImportError as error:
        return f"the Triton kernels cannot be imported ({error})"
    return gpu


def _why_not_triton(embeddings: Tensor, num_classes: int, k: int, options: Options) -> str | None:
    kernels = triton_kernels()
    if isinstance(kernels, str):
        return kernels
    return kernels.why_unsupported(embeddings, num_classes, k, options.embedding_target)


@cache
def _warn_once(reason: str) -> None:
    warnings.warn(f'adcorre: backend "auto" takes "torch": {reason}', stacklevel=2)


def linear_terms(flat: Tensor, attention: Tensor, k: int, d: int, options: Options) -> tuple[Tensor, Tables]:
    """`Values` as one tensor, and the tables; FD of the pairs within classes alone if pairs="sample".

    The torch backend's where the kernels leave many classes to whole-tensor operations.
    """
    num_classes = attention.shape[0]
    between_target = None if options.pairs == "sample" else options.between_target
    supported = True
    if options.backend == "triton":
        supported = triton_kernels().terms_supported(num_classes, k, d)
    elif options.backend == "numba":
        supported = cpu.terms_supported(num_classes, between_target, options.mean_target)
    backend = backend_of(options) if supported else _TORCH
    values, *tables = backend.terms(
        flat, attention, k, d, between_target, options.mean_target, options.embedding_target
    )
    return values, Tables(*tables)


def apply_of(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """`function.apply`, in eager mode of a twin without `setup_context`.

    With it PyTorch binds the arguments to the signature of `forward` in each call, which takes as long as ten small
    operations. Functional transforms and `torch.compile` need it.
    """

    def forward(ctx: Any, *inputs: Any) -> Any:
        output = function.forward(*inputs)
        function.setup_context(ctx, inputs, output)
        return output

    methods = {"forward": staticmethod(forward), "backward": staticmethod(function.backward)}
    eager: Any = type(function.__name__, (torch.autograd.Function,), methods)

    def apply(*arguments: Any) -> Any:
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            return function.apply(*arguments)
        return eager.apply(*arguments)

    return apply


class _Gradient(torch.autograd.Function):
    """A backward pass as a function of its own, so that a second derivative is refused and never silently wrong."""

    @staticmethod
    def forward(compute: Callable[..., Any], backend: str, *tensors: Tensor) -> Any:
        return compute(*tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.backend = inputs[1]

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError(f'adcorre: backend "{ctx.backend}" has no double backward; backend="reference" has one')


_apply_gradient = apply_of(_Gradient)


def without_double_backward(compute: Callable[..., Any], options: Options, *tensors: Tensor | None) -> Any:
    """compute(*tensors); a second derivative, where one can be asked for, is an error."""
    if torch.is_grad_enabled():
        return _apply_gradient(compute, options.backend, *tensors)
    return compute(*tensors)
